"""Operations on endpoints, as somebody asks for them: deploys, traffic, rebuilds, webhooks, comparison."""
