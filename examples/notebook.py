"""kdray from Python: a scikit-learn model that only answers queries becomes a small CNN.

The teacher could as well be a function that calls an API. Run it with `python examples/notebook.py`.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import kdray

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
pixels = (digits.images[order] * (255 / 16)).round().astype(np.uint8)  # uint8 [1797, 8, 8]
labels = digits.target[order]

# The black box: somebody else's model. From here on only `ask` is used.
black_box = SVC(gamma=0.001).fit(digits.images[order][:1000].reshape(1000, -1), labels[:1000])


def ask(images: np.ndarray) -> np.ndarray:
    """uint8 [B, 1, 8, 8] in, the predicted class [B] out: this teacher gives labels, no probabilities."""
    return black_box.predict(images.reshape(len(images), -1) * (16 / 255))


if __name__ == "__main__":
    result = kdray.distil(
        teacher=ask,
        images=pixels[1000:1100],  # one hundred unlabelled images
        budget=1000,
        test=(pixels[1400:], labels[1400:]),
        classes=10,
        teacher_options={"answers": "hard"},
        select={"rounds": 3},
        student={"model": "small-cnn", "epochs": 60, "batch_size": 64, "augment": {"shift": 1}},
    )
    teacher, student = (ask(pixels[1400:]) == labels[1400:]).mean(), result.history[-1].student_accuracy
    print(f"teacher {teacher:.2%}, student {student:.2%}, {result.receipt.queries} queries")
    print(f"everything is in {result.directory}")
