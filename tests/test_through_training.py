"""The hypergradient through training: against differences of what torch's AdamW comes to, its memory, what it leaves alone and refuses."""

from __future__ import annotations

from typing import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from meltr_ray import AdamRule, training_gradient
from tests.exactness import four_point_difference
from tests.misuse import Unmarked
from tests.problems import CurvedWeights, combiner_away_from_the_sum
from tests.reference import flat, relative_error

RULE = 1e-6
"""Of relative error against differences; their own is below 1e-7."""
STATE = ("exp_avg", "exp_avg_sq")


class Network(nn.Module):
    """Dropout, batch norm, attention, a late decoder that no loss reaches before step 3, and a weight whose gradient is always 0."""

    def __init__(self, dropout: float):
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Linear(4, 6, bias=False),
            nn.BatchNorm1d(6),
            nn.Linear(6, 2),
        )  # a bias before the norm: its gradient is rounding
        self.decoder, self.frozen = nn.Linear(6, 2), nn.Linear(4, 6).requires_grad_(False)
        self.dropout, self.still = nn.Dropout(dropout), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4) -> (B, 6)"""
        heads = torch.tanh(self.norm(self.first(x)) + self.frozen(x)).view(1, 1, -1, 6)
        return self.dropout(heads + nn.functional.scaled_dot_product_attention(heads, heads, heads))[0, 0]


class Case:
    """K steps of training from a w with moments, and a plain loop of torch's that takes the same."""

    def __init__(self, steps: int, dropout: float = 0.0, clip: float = 0.0, before: int = 4, epsilon: float = 1e-8):
        torch.manual_seed(3)
        self.module, self.steps, self.clip = Network(dropout).double(), steps, clip
        self.X, self.Y = torch.randn(steps + 1, 7, 4).double(), torch.randn(steps + 1, 7, 2).double()
        self.named = [p for p in self.module.parameters() if p.requires_grad]
        decayed = [p for p in self.named if p.dim() > 1]
        groups = [
            {"params": decayed, "weight_decay": 0.1},
            {"params": [p for p in self.named if p.dim() == 1], "weight_decay": 0.0, "lr": 0.01},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.02, eps=epsilon)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        for number in range(before):  # so that there are moments, but for the decoder
            self.losses(number % 3 if steps > 2 else 0).sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.masks = torch.get_rng_state()

    def schedule(self, number: int) -> float:
        return min(1.0, (number + 1) / 4) * (1 - number / (2 * self.steps))

    def losses(self, number: int) -> Tensor:
        """(3,)"""
        hidden = self.module(self.X[number])
        error = self.module.second(hidden) - self.Y[number]
        far = self.module.decoder(hidden) - self.Y[number] if number >= 3 else 0.1 * hidden
        return torch.stack([error.square().mean() + 0 * self.module.still.sum(), far.cosh().mean(), 3 * error[:, 1].sin().mean()])

    def primary(self) -> Tensor:
        self.module.dropout.eval()
        hidden = self.module(self.X[-1])
        self.module.dropout.train()
        return (self.module.second(hidden) + self.module.decoder(hidden) - self.Y[-1]).square().mean()

    def rule(self) -> AdamRule:
        return AdamRule.of(self.optimizer, self.named, self.schedule, self.clip)

    def oracle(self, combine: nn.Module | Tensor, segments: int = 1, **options):
        torch.set_rng_state(self.masks)
        return training_gradient(self.module, self.losses, self.primary, combine, self.rule(), self.steps, segments, **options)

    @torch.enable_grad()
    def by_torch(self, slopes_of: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, list[Tensor]]:
        """F and w_K; `slopes_of`: losses and step -> slopes."""
        weights = {name: x.clone() for name, x in self.module.state_dict().items()}
        moments = {p: {key: x.clone() for key, x in state.items()} for p, state in self.optimizer.state.items()}
        torch.set_rng_state(self.masks)
        for number in range(self.steps):
            l = self.losses(number)
            (slopes_of(l.detach(), number) @ l).backward()
            if self.clip:
                torch.nn.utils.clip_grad_norm_(self.named, self.clip)
            for group, rate in zip(self.optimizer.param_groups, self.rates):
                group["lr"] = rate * self.schedule(number)
            self.optimizer.step()
            self.optimizer.zero_grad()
        found = self.primary().detach(), [p.detach().clone() for p in self.named]
        self.module.load_state_dict(weights)
        self.optimizer.state.clear()
        self.optimizer.state.update(moments)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate
        return found


SLOPES = torch.tensor([1.0, 0.5, -0.3]).double()


@pytest.mark.parametrize("steps, dropout, clip, before, epsilon", [
    (1, 0.0, 0.0, 4, 1e-8), (1, 0.0, 0.0, 0, 1e-3), (5, 0.3, 0.5, 4, 1e-8), (5, 0.0, 0.0, 0, 1e-8), (40, 0.0, 0.0, 4, 1e-8), (40, 0.3, 0.5, 0, 1e-8),
])  # fmt: skip
def test_it_is_the_derivative_of_what_torchs_adamw_comes_to(steps, dropout, clip, before, epsilon):
    """`before`: steps that the moments come from; 0: none, and a first step alone moves w by signs but for epsilon.

    The masks of each step are its own, the decoder starts at step 3, `still` has gradient 0.
    """
    case = Case(steps, dropout, clip, before, epsilon)
    value, weights = case.by_torch(lambda l, k: SLOPES)
    found = case.oracle(SLOPES)
    assert abs(found.value - value) <= 1e-12 and relative_error(flat(found.weights), flat(weights)) <= 1e-12
    expected = four_point_difference(lambda a: case.by_torch(lambda l, k: a)[0], SLOPES, 1e-5)
    assert relative_error(found.gradient[0], expected) <= RULE, (found.gradient[0], expected)
    for segments in {1, min(3, steps), steps}:
        again = case.oracle(SLOPES, segments)
        assert again.value == found.value and relative_error(again.gradient[0], found.gradient[0]) <= 1e-12


def test_the_clip_of_these_cases_bites():
    case = Case(5, clip=0.5)
    gradients = torch.autograd.grad(SLOPES @ case.losses(0), case.named, allow_unused=True, materialize_grads=True)
    assert flat(list(gradients)).norm() > 1


def test_slopes_of_each_step_of_its_own():
    case = Case(5, dropout=0.3)
    each = SLOPES + 0.1 * torch.randn(5, 3).double()
    found = case.oracle(each, segments=2)
    expected = four_point_difference(lambda a: case.by_torch(lambda l, k: a.view(5, 3)[k])[0], each.flatten(), 1e-5)
    assert found.gradient[0].shape == (5, 3) and relative_error(found.gradient[0].flatten(), expected) <= RULE
    alike = case.oracle(SLOPES.expand(5, 3))
    assert relative_error(alike.gradient[0].sum(0), case.oracle(SLOPES).gradient[0]) <= 1e-12


def slopes_by(combiner: nn.Module) -> Callable[[Tensor, int], Tensor]:
    def slopes_of(l: Tensor, number: int) -> Tensor:
        l = l.clone().requires_grad_()
        return torch.autograd.grad(combiner(l), l)[0]

    return slopes_of


@pytest.mark.parametrize("make, step", [
    (lambda: CurvedWeights([0.5, -0.25, 1.0], [0.25, 0.125, 0.5]), 1e-4), (lambda: combiner_away_from_the_sum(3), 1e-6),
])  # fmt: skip
def test_phi_of_a_combiner_whose_slopes_follow_the_losses(make, step):
    """Along random directions; MELTR has kinks, so its step is short."""
    case, combiner = Case(6, dropout=0.3, clip=0.5), make().double()
    start, phi = flat([p.detach().clone() for p in combiner.parameters()]), list(combiner.parameters())
    directions = nn.functional.normalize(torch.randn(3, len(start)).double(), dim=1)

    def outer(along: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(start + along @ directions, phi)
        return case.by_torch(slopes_by(combiner))[0]

    expected = four_point_difference(outer, torch.zeros(3).double(), step)
    nn.utils.vector_to_parameters(start, phi)
    for segments in (1, 3):
        found = case.oracle(combiner, segments)
        assert relative_error(directions @ flat(found.gradient), expected) <= RULE


def test_micro_batches_count_by_their_mean():
    case, combiner = Case(3), CurvedWeights([0.5, -0.25, 1.0], [0.25, 0.125, 0.5]).double()
    once = case.oracle(combiner)
    found = training_gradient(case.module, lambda k: case.losses(k).expand(2, 3), case.primary, combiner, case.rule(), 3)
    assert relative_error(flat(found.gradient), flat(once.gradient)) <= 1e-12


class Two(nn.Module):
    """Two weights; the second loss alone reaches the second."""

    def __init__(self):
        super().__init__()
        self.x, self.u = nn.Parameter(torch.tensor([0.7]).double()), nn.Parameter(torch.tensor([0.3]).double())


@pytest.mark.parametrize("steps", [1, 4])
def test_where_a_second_moment_is_zero_it_is_the_derivative_of_a_small_gradient(steps):
    """The second slope is 0, so u has gradient 0; a little of it moves u by its first moment over epsilon."""
    epsilon = 0.1

    def trained(a: Tensor) -> Tensor:
        module = Two()
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.05, eps=epsilon)
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.enable_grad():
                (a[0] * module.x.square() + a[1] * (module.u + module.x).sin()).sum().backward()
            optimizer.step()
        return (module.x * module.u.exp()).sum().detach()

    module = Two()
    rule = AdamRule.of(torch.optim.AdamW(module.parameters(), lr=0.05, eps=epsilon), list(module.parameters()))
    a = torch.tensor([1.0, 0.0]).double()
    found = training_gradient(module, lambda k: torch.cat([module.x.square(), (module.u + module.x).sin()]),
                              lambda: (module.x * module.u.exp()).sum(), a, rule, steps)  # fmt: skip
    expected = four_point_difference(trained, a, 1e-8)
    assert abs(expected[1]) > 0.01 and relative_error(found.gradient[0], expected) <= RULE


def test_bert_adam_is_the_rule_without_correction():
    from meltr_ray.training.bert_adam import BertAdam

    w = nn.Parameter(torch.randn(5).double())
    optimizer, module = BertAdam([w], lr=0.01), nn.Module()
    module.w = nn.Parameter(w.detach().clone())
    zeros = [torch.zeros(5).double()]
    rule = AdamRule(zeros, zeros, [0], [0.01], [0.01], epsilon=1e-6, corrected=False)
    found = training_gradient(module, lambda k: module.w.cosh().sum().view(1), lambda: module.w.sum(), torch.ones(1).double(), rule, 7)
    for _ in range(7):
        optimizer.zero_grad()
        w.cosh().sum().backward()
        optimizer.step()
    assert relative_error(found.weights[0], w) <= 1e-12


def test_weights_buffers_generators_and_moments_stay_as_they_are():
    case = Case(5, dropout=0.3)
    before = [x.clone() for x in case.module.state_dict().values()]
    moments = [case.optimizer.state[p][key].clone() for p in case.optimizer.state for key in STATE]
    torch.manual_seed(8)
    generator = torch.get_rng_state()
    training_gradient(case.module, case.losses, case.primary, SLOPES, case.rule(), 5, 2)
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(before, case.module.state_dict().values()))
    assert all(torch.equal(x, y) for x, y in zip(moments, [case.optimizer.state[p][key] for p in case.optimizer.state for key in STATE]))
    assert all(p.grad is None for p in case.module.parameters())


@pytest.mark.parametrize("segments", [1, 4, 12])
def test_it_takes_the_passes_that_the_documentation_says(segments):
    case, passes = Case(12), []
    training_gradient(
        case.module, lambda k: passes.append(k) or case.losses(k), case.primary, SLOPES, case.rule(), 12, segments, trust=True
    )
    assert len(passes) == 1 + 12 + (12 - 12 // segments)


def peak_bytes(function: Callable[[], object]) -> int:
    """Of what is allocated inside."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    now = peak = 0
    for _, moved in sorted(
        (event.start_ns(), event.nbytes()) for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"
    ):
        now += moved
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("segments", [1, 5, 30])
def test_the_memory_that_is_foreseen_is_about_what_it_takes(segments):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 60), nn.Tanh(), nn.Dropout(0.1), nn.Linear(60, 60), nn.GELU(), nn.Linear(60, 3)).double()
    x, y = torch.randn(100, 20).double(), torch.randn(100, 3).double()
    rule = AdamRule.of(torch.optim.AdamW(module.parameters()), list(module.parameters()), clip=0.1)
    found = []

    def run() -> None:
        found.append(
            training_gradient(
                module, lambda k: (module(x) - y).square().mean(0), lambda: module(x).sum(), SLOPES, rule, 30, segments, trust=True
            )
        )

    run()
    peak = peak_bytes(run)
    assert 0.8 * peak <= found[0].num_bytes <= 1.25 * peak, (peak, found[0].num_bytes)


def test_what_can_not_be_is_refused_in_one_line():
    case = Case(5)
    needs = case.oracle(SLOPES).num_bytes
    sgd = torch.optim.SGD(case.named, lr=0.1)

    def ask(steps=5, segments=1, combine=SLOPES, losses=case.losses, primary=case.primary, **options):
        return lambda: training_gradient(case.module, losses, primary, combine, case.rule(), steps, segments, **options)

    cases = [
        (ask(steps=0), "steps=0: at least 1 is needed"),
        (ask(segments=0), "segments=0: at least 1 is needed"),
        (ask(segments=6), "segments=6: must lie in 1 to steps=5"),
        (ask(max_bytes=needs - 1), f"max_bytes={needs - 1}: 5 steps in 1 segments take {needs} bytes; give segments="),
        (ask(max_bytes=10), "take fewer steps or a smaller module"),
        (ask(combine=SLOPES.expand(4, 3)), "combine=(4, 3): must have a row for each of 5 steps"),
        (ask(combine=SLOPES.view(1, 1, 3)), "combine=(1, 1, 3): must have a row for each of 5 steps"),
        (ask(losses=lambda k: case.losses(k).sum()), "losses: shape (); return one vector (T,)"),
        (ask(combine=SLOPES[:2]), "combine=(2,): has slopes of 2 losses, and there are 3"),
        (ask(losses=lambda k: torch.ones(3).double()), "losses: those of step 0 don't depend on the module's weights"),
        (ask(losses=lambda k: case.losses(k) + F.normalize(0 * case.module.second.weight).sum()), "double_backward is wrong here, it isn't finite"),
        (ask(losses=lambda k: case.losses(k) + F.normalize(0 * case.module.second.weight).sum(), trust=True), "gradient: isn't finite after 5 steps"),
        (ask(losses=lambda k: case.losses(k) + Unmarked.apply(case.module.second.weight).sum()), "double_backward is wrong here, it is off by"),
        (ask(primary=lambda: torch.ones(())), "primary: doesn't depend on the module's weights"),
        (lambda: AdamRule.of(sgd, case.named), "optimizer=SGD"),
        (lambda: AdamRule.of(torch.optim.AdamW(case.named, amsgrad=True), case.named), "optimizer=amsgrad"),
        (lambda: AdamRule.of(torch.optim.AdamW(case.named[:1]), case.named), "lacks a parameter"),
        (lambda: AdamRule.of(torch.optim.AdamW(case.named, eps=0.0), case.named), "epsilon=0.0: must be positive"),
    ]  # fmt: skip
    for act, words in cases:
        with pytest.raises(ValueError) as caught:
            act()
        assert words in str(caught.value) and "\n" not in str(caught.value), (words, str(caught.value))
    assert case.oracle(SLOPES, max_bytes=needs).num_bytes == needs
