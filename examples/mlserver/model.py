"""A digits classifier behind MLServer, as somebody else might serve it: nothing of kdray in it."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import Datatype, InferenceRequest, InferenceResponse
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier


class Digits(MLModel):
    """Input "image", UINT8 [N, 1, 8, 8]; output "probabilities", FP32 [N, 10]."""

    async def load(self) -> bool:
        digits = load_digits()
        # The order of kdray's own `digits`: the first thousand rows are this teacher's, the rest is for the student.
        rows = np.random.default_rng(0).permutation(len(digits.target))[:1000]
        pixels = (digits.images[rows] * (255 / 16)).round() / 255
        # Fixed seed: the same model after every start, as a ledger of answers expects.
        self._model = MLPClassifier([64], alpha=0.1, max_iter=500, random_state=0)
        self._model.fit(pixels.reshape(len(rows), -1), digits.target[rows])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        image = payload.inputs[0] if len(payload.inputs) == 1 else None
        if image is None or image.name != "image" or Datatype(image.datatype) != Datatype.UINT8:
            raise InferenceError("the one input is 'image', of datatype UINT8")
        if image.shape[1:] != [1, 8, 8] or image.shape[0] < 1:
            raise InferenceError(f"'image' has shape [-1, 1, 8, 8], not {image.shape}")
        try:
            pixels = NumpyCodec.decode_input(image)
        except (ValueError, TypeError, OverflowError) as error:
            raise InferenceError(f"'image' cannot be read: {error}") from None
        probabilities = self._model.predict_proba(pixels.reshape(len(pixels), -1) / 255).astype(np.float32)
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self.version,
            outputs=[NumpyCodec.encode_output("probabilities", probabilities)],
        )
