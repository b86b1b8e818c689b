"""Values for the fields of a config: what they allow, what is close to it, and what is neither."""

import math

import numpy as np
from hypothesis import strategies as st

from nam_jax import models
from nam_jax.attention import NAMES as ATTENTIONS
from train.core.config.fields import FIELDS

WHOLE = [
    *(0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 64, 1000, 2**20, 10**6, 10**9),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, -(2**63), 10**400, 10**4000),
]
NUMBERS = [
    *(0.0, -0.0, 1e-3, 0.1, 0.5, 1 - 1e-16, 1.0, 1.5, 10.0, 1e6, -0.5),
    *(5e-324, 1e-300, 1.1e-38, 1.2e-38, 1e-20, 1e20, 3.4e38, 3.5e38, 1e308),
    *(math.inf, -math.inf, math.nan),
]
TEXTS = [
    *("", " ", ".", "..", "../..", "/", "-1", "None", "a,b", "a:b", "a/b", "a" * 5000, "~nobody"),
    *("a\nb", "a\0b", "a\rb", "a\u2028b", "\x1b[31m", "\udc80", "数字", "ｄｉｇｉｔｓ", "digits²"),
    *("%s", "{}", "train[", "train[:", "train[:50%]", "train+test", "train[:0]", "all", "test"),
    *("train[5:2]", "all[:2]"),
    *("digits/a", "digits:1", "digits:..", "a/..", "tiny:1.0.0", "tiny/1.0.0", "tiny:9.9.9"),
]
# Names that fields allow; the others have none.
NAMES = {
    "model.name": models.NAMES,
    "model.attention": ATTENTIONS,
    "model.stem": ("imagenet", "cifar"),
    "model.dtype": ("float32", "bfloat16", "float64"),
    "model.pretrained": ("", "weights.pth"),
    "data.name": ("digits",),
    "data.dir": ("/nowhere",),
    "data.train_split": ("train", "test"),
    "data.eval_split": ("train", "test"),
    "data.loader": ("resident", "streaming"),
    "data.crop": ("pad", "resized"),
    "data.interpolation": ("bilinear", "bicubic", "area"),
    "data.augmentation": ("none", "randaugment", "trivialaugment"),
    "optimizer.name": ("sgd", "lars"),
    "optimizer.schedule": ("step", "cosine", "constant"),
    "optimizer.weight_decay_on": ("all", "kernels"),
    "optimizer.sparsity_mode": ("sign", "proximal"),
}

numbers = st.sampled_from(NUMBERS) | st.floats()
OF_KIND = {
    int: st.sampled_from(WHOLE) | st.integers(),
    float: numbers | st.integers(-2, 10),
    bool: st.booleans(),
    str: st.sampled_from(TEXTS) | st.text(),
    tuple: st.lists(numbers, max_size=5).map(tuple)
    | st.lists(st.floats(0, 1), max_size=5, unique=True).map(sorted)
    | st.sampled_from([(0.5,) * 10**5, tuple(i / 1000 for i in range(1, 1000))]),
}
foreign = st.sampled_from(
    [
        *(None, True, False, 0, 1, 1.0, "1", "True", b"1", (), [], (1,), ("a",), ((1,),), {}),
        *(2**31, 10**400, -(10**400), {"a": 1}, {1: 2}, {1, 2}, 1j, int, object(), range(3), len),
        *(np.float32(1), np.int64(1), np.bool_(True), np.str_("a"), np.ones(3), np.ones((2, 2))),
    ]
)


def of_kind(name):
    """Values of the type that a field has, allowed or not."""
    strategy = OF_KIND[type(FIELDS[name].default)]
    return st.sampled_from(NAMES[name]) | strategy if name in NAMES else strategy


def allowed(name):
    """Values that a field allows by itself."""
    return of_kind(name).filter(FIELDS[name].test)
