"""Probabilities and cosines."""

import math

import pytest

from quire.base.scores import ACTIVATIONS, activated, cosine


def test_softmax_adds_up_to_one_also_for_huge_logits():
    assert activated([1000.0, 1000.0, -1000.0], "softmax") == pytest.approx([0.5, 0.5, 0.0])
    assert activated([0.0, math.log(3)], "softmax") == pytest.approx([0.25, 0.75])


def test_sigmoid_looks_at_each_logit_alone_and_does_not_overflow():
    assert activated([0.0, 1000.0, -1000.0, math.log(3)], "sigmoid") == pytest.approx([0.5, 1.0, 0.0, 0.75])


def test_identity_leaves_logits_alone_and_other_names_are_bugs():
    assert activated([3.0, -2.0], "identity") == [3.0, -2.0]
    with pytest.raises(ValueError, match="softmax, sigmoid, identity"):
        activated([1.0], "tanh")
    assert len(ACTIVATIONS) == 3


def test_a_cosine_does_not_depend_on_lengths_and_is_zero_without_a_direction():
    assert cosine([1.0, 0.0], [5.0, 5.0]) == pytest.approx(math.sqrt(0.5))
    assert cosine([1.0, 2.0], [-2.0, -4.0]) == pytest.approx(-1.0)
    assert cosine([0.0, 0.0], [1.0, 2.0]) == 0.0
