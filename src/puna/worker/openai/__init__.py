"""OpenAI's chat and text completions, whichever engine answers them."""
