"""The app under load: it does nothing, so that what is measured is everything around it."""


class InferlessPythonModel:
    def initialize(self):
        pass

    def infer(self, inputs):
        return {"out": "ok"}

    def finalize(self):
        pass
