"""Losses, schedule, averaging and batches, against numbers computed by hand."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from edgecnn.families.small import create  # noqa: E402
from edgecnn.process.errors import EdgeError  # noqa: E402
from edgecnn.recipe.recipe import DistillSpec, ModelSpec, TrainSpec  # noqa: E402
from edgecnn.training.classify import Classify  # noqa: E402
from edgecnn.training.distill import METHODS, Answer, answer  # noqa: E402
from edgecnn.training.distill.dist import pearson_distance  # noqa: E402
from edgecnn.training.distill.logits import softened_divergence  # noqa: E402
from edgecnn.training.distill.teacher import Teacher  # noqa: E402
from edgecnn.training.feed import epoch_batches, in_order  # noqa: E402
from edgecnn.training.schedule import Average, learning_rate, make_optimizer  # noqa: E402

pytestmark = pytest.mark.train


def test_softened_divergence_by_hand() -> None:
    # Temperature 2; teacher logits (2 ln 3, 0) soften to (3/4, 1/4), the student's (0, 0) to (1/2, 1/2).
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.tensor([[0.0, 0.0]])
    by_hand = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert float(softened_divergence(student, teacher, 2.0)) == pytest.approx(by_hand, rel=1e-6)
    two = softened_divergence(student.repeat(2, 1), teacher.repeat(2, 1), 2.0)
    assert float(two) == pytest.approx(by_hand, rel=1e-6)  # the mean over images


def test_softened_divergence_keeps_the_gradient_size() -> None:
    sizes = []
    for temperature in (8.0, 16.0):
        student = torch.zeros(1, 3, requires_grad=True)
        softened_divergence(student, torch.tensor([[0.3, 0.0, -0.3]]), temperature).backward()
        sizes.append(float(student.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def distillation_loss(spec: DistillSpec, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return METHODS[spec.method](Answer(student, student), Answer(teacher, teacher), spec)


def test_pearson_distance_by_hand() -> None:
    a = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    b = torch.tensor([[2.0, 4.0, 6.0], [3.0, 2.0, 1.0]])  # correlations 1 and -1: distances 0 and 2
    assert float(pearson_distance(a, b)) == pytest.approx(1.0, abs=1e-6)
    c = torch.tensor([[1.0, 3.0, 2.0]])  # with 1, 2, 3: covariance 1 of variances 2 and 2: 0.5
    assert float(pearson_distance(a[:1], c)) == pytest.approx(0.5, abs=1e-6)


def test_dist_by_hand() -> None:
    # Two classes: rows of probabilities correlate by their sign alone; columns over three images.
    spec = DistillSpec(method="dist", temperature=1.0)

    def logits(shares: list[float]) -> torch.Tensor:
        return torch.tensor([[math.log(share), math.log(1 - share)] for share in shares])

    student, teacher = logits([0.9, 0.2, 0.7]), logits([0.8, 0.4, 0.3])
    between = (0 + 0 + 2) / 3  # the third image is answered the other way
    first, second = np.array([0.9, 0.2, 0.7]), np.array([0.8, 0.4, 0.3])
    within = 1 - np.corrcoef(first, second)[0, 1]  # the same for both classes
    assert float(distillation_loss(spec, student, teacher)) == pytest.approx(between + within, rel=1e-5)
    warmer = DistillSpec(method="dist", temperature=2.0)
    expected = 4 * float(distillation_loss(spec, student / 2, teacher / 2))
    assert float(distillation_loss(warmer, student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_an_exact_student_has_no_loss() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for method in ("logits", "dist"):
        spec = DistillSpec.model_validate({"method": method})
        assert float(distillation_loss(spec, logits, logits)) == pytest.approx(0.0, abs=1e-4)


def test_every_method_of_the_recipe_is_there() -> None:
    methods = get_args(DistillSpec.model_fields["method"].annotation)
    assert {*METHODS, "feature"} == set(methods)  # `feature` is of detectors: their own trainer has it


def test_a_method_on_features_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def nearer(student: Answer, teacher: Answer, spec: DistillSpec) -> torch.Tensor:
        return (student.features.flatten(1).mean(1) - teacher.features.flatten(1).mean(1)).square().mean()

    monkeypatch.setitem(METHODS, "dist", nearer)
    student, wide = (create(ModelSpec(family="small", name="gap-s", image_size=8, width=width), 3, 1).eval()
                     for width in (1.0, 2.0))  # fmt: skip
    pixels = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    train = TrainSpec(distill=DistillSpec(method="dist", alpha=1.0))
    taught = Classify(train, np.zeros(4, np.int64), torch.nn.Identity(), torch.device("cpu"),
                      Teacher(wide, 8, torch.nn.Identity()))  # fmt: skip
    assert answer(student, pixels).features.shape == (4, 64)  # what its linear layer is given, not the logits
    loss = taught.loss(student, pixels, torch.zeros(4, dtype=torch.int64))
    expected = nearer(answer(student, pixels), answer(wide, pixels), DistillSpec())
    assert float(loss.detach()) == pytest.approx(float(expected.detach()))
    loss.backward()
    assert float(student.features[0][0].weight.grad.abs().sum()) > 0
    assert all(weight.grad is None for weight in wide.parameters())


def test_learning_rate() -> None:
    train = TrainSpec(epochs=10, lr=1.0, warmup_epochs=2)
    rates = [learning_rate(train, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[30] == pytest.approx(0.5)
    assert rates[49] < 0.005
    assert rates[10:] == sorted(rates[10:], reverse=True)
    flat = TrainSpec(epochs=10, lr=1.0, warmup_epochs=0, schedule="constant")
    assert {learning_rate(flat, step, 5) for step in range(50)} == {1.0}


def test_average_by_hand() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    average = Average(net, 0.5)
    values = []
    for step, weight in enumerate((1.0, 1.0, 2.0)):
        nn.init.constant_(net.weight, weight)
        average.update(net, step)
        values.append(float(average.net.weight))
    first = 1 - 1 / 10  # decays (1 + t) / (10 + t): 1/10, 2/11, 3/12, all below 0.5
    second = first * 2 / 11 + 9 / 11
    assert values == pytest.approx([first, second, second * 0.25 + 2 * 0.75])


def test_average_takes_batchnorm_statistics() -> None:
    net = nn.BatchNorm2d(1)
    average = Average(net, 0.5)
    net(torch.full((2, 1, 2, 2), 10.0))
    average.update(net, 1000)
    assert float(average.net.running_mean) == pytest.approx(0.5)
    assert int(average.net.num_batches_tracked) == 1


def test_biases_and_norms_do_not_decay() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    for optimizer in ("adamw", "sgd"):
        groups = make_optimizer(TrainSpec.model_validate({"optimizer": optimizer}), net).param_groups
        assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.01), (3, 0.0)]


def test_batches_leave_out_the_tail_and_are_shared_evenly() -> None:
    order = np.arange(10)[::-1].copy()
    assert [batch.tolist() for batch in epoch_batches(order, 4)] == [[9, 8, 7, 6], [5, 4, 3, 2]]
    assert [batch.tolist() for batch in epoch_batches(order, 64)] == [order.tolist()]
    assert [batch.tolist() for batch in epoch_batches(order, 4, 1, 2)] == [[8, 6], [4, 2]]
    assert [len(batch) for batch in in_order(10, 4)] == [4, 4, 2]
    with pytest.raises(EdgeError, match="can't be shared evenly by 3 processes"):
        epoch_batches(order, 4, 0, 3)
