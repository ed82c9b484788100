"""Augmentation does what torchvision does for equal parameters, as often and as far as the recipe says."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms._functional_tensor as tvt
import torchvision.transforms.functional as tvf
from torch import Tensor

from s8lib.data import augment as aug

MANY = 20_000
FULL, REDUCED = aug.POLICIES["full"], aug.POLICIES["reduced"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """[64, 3, 32, 32] uint8: smooth colours with noise on them, one image black, one grey, one white."""
    generator = seeded(1)
    coarse = torch.rand(64, 3, 5, 5, generator=generator)
    smooth = F.interpolate(coarse, size=(32, 32), mode="bicubic", align_corners=True)
    noisy = smooth + 0.1 * torch.rand(64, 3, 32, 32, generator=generator)
    pixels = (noisy * 255).clamp(0, 255).to(torch.uint8)
    for index, level in enumerate((0, 128, 255)):
        pixels[index] = level
    return pixels


def unit(images: Tensor) -> Tensor:
    return images.to(torch.float32) / 255


def still(n: int) -> aug.Draws:
    """Draws in which nothing is active."""
    return aug.draw(n, aug.POLICIES["none"], seeded())


def motion(
    n: int, flip: bool = False, x: float = 0.0, y: float = 0.0, scale: float = 1.0, angle: float = 0.0
) -> Tensor:
    """The matrix of one and the same motion for n images."""
    numbers = (torch.full((n,), number) for number in (x, y, scale, angle))
    return aug.warp_matrix(torch.full((n,), flip), *numbers)


def undone(matrix: Tensor) -> dict[str, Tensor]:
    """Flip, scale, angle in degrees and shifts in pixels, read back from the matrices [n, 2, 3]."""
    matrix = matrix.double()
    linear, offset = matrix[:, :, :2], matrix[:, :, 2:]
    flip = torch.linalg.det(linear) < 0
    angle = torch.atan2(-linear[:, 1, 0], linear[:, 1, 1]) * 180 / math.pi
    shift = -torch.linalg.solve(linear, offset)[:, :, 0]
    scale = torch.linalg.det(linear).abs().rsqrt()
    return {"flip": flip, "scale": scale, "angle": angle, "x": shift[:, 0], "y": shift[:, 1]}


# What each operation does


def test_flip_equals_torchvision_exactly(images: Tensor) -> None:
    flipped = aug.warp(unit(images), motion(len(images), flip=True))
    assert torch.equal(flipped, tvf.hflip(unit(images)))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("x", "y", "scale", "angle"),
    [(2, 0, 1, 0), (0, -1, 1, 0), (0, 0, 1.1, 0), (0, 0, 0.9, 0), (0, 0, 1, 15), (2, -1, 0.93, -15)],
)
def test_warp_equals_torchvision_affine_of_the_reflected_surroundings(
    images: Tensor, flip: bool, x: int, y: int, scale: float, angle: float
) -> None:
    # torchvision's affine knows no reflection, so it gets an image that is reflected as far as it will look.
    surrounded = F.pad(unit(images), (12, 12, 12, 12), mode="reflect")
    flipped = tvf.hflip(surrounded) if flip else surrounded
    moved = tvf.affine(flipped, angle, [x, y], scale, [0.0, 0.0], tvf.InterpolationMode.BILINEAR)
    warped = aug.warp(unit(images), motion(len(images), flip, x, y, scale, angle))
    torch.testing.assert_close(warped, moved[:, :, 12:44, 12:44], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("x", "y"), [(2, 0), (-2, 0), (0, 2), (0, -2), (1, -2), (-2, -1)])
def test_border_reflects_without_repeating_the_edge_pixel(images: Tensor, x: int, y: int) -> None:
    warped = aug.warp(unit(images), motion(len(images), x=x, y=y))
    padded = F.pad(unit(images), (2, 2, 2, 2), mode="reflect")
    assert torch.equal(warped, padded[:, :, 2 - y : 34 - y, 2 - x : 34 - x])


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.2])
def test_brightness_then_contrast_equal_torchvision(images: Tensor, factor: float) -> None:
    n = len(images)
    for brightness, contrast in ((factor, 1.0), (1.0, factor), (factor, 2 - factor)):
        draws = dataclasses.replace(
            still(n), brightness=torch.full((n,), brightness), contrast=torch.full((n,), contrast)
        )
        expected = tvf.adjust_contrast(tvf.adjust_brightness(unit(images), brightness), contrast)
        policy = aug.Policy(brightness_contrast_p=1.0)
        torch.testing.assert_close(aug.apply(images, draws, policy), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("shift", [(10, 0, 0), (-10, 0, 0), (0, 20, 0), (0, 0, -10), (-7, -13, 10)])
def test_hue_saturation_value_equal_torchvisions_hsv(images: Tensor, shift: tuple[int, int, int]) -> None:
    hue, saturation, value = tvt._rgb2hsv(unit(images)).unbind(1)
    expected = tvt._hsv2rgb(
        torch.stack(
            [
                (hue + shift[0] / 180) % 1,
                (saturation + shift[1] / 255).clamp(0, 1),
                (value + shift[2] / 255).clamp(0, 1),
            ],
            dim=1,
        )
    )
    shifted = aug.shift_hsv(unit(images), torch.tensor([shift], dtype=torch.float32).expand(len(images), 3))
    torch.testing.assert_close(shifted, expected, atol=1e-5, rtol=0)


def test_hue_goes_round_the_circle() -> None:
    red, green, blue = torch.eye(3)[:, :, None, None].expand(3, 3, 32, 32)
    third = torch.tensor([[60.0, 0.0, 0.0]])
    torch.testing.assert_close(aug.shift_hsv(red[None], third)[0], green)
    torch.testing.assert_close(aug.shift_hsv(green[None], third)[0], blue)
    torch.testing.assert_close(aug.shift_hsv(blue[None], third)[0], red)
    torch.testing.assert_close(aug.shift_hsv(red[None], -third)[0], blue)


@pytest.mark.parametrize(("policy", "side"), [(FULL, 8), (REDUCED, 6)], ids=["full", "reduced"])
def test_cutout_is_one_whole_square_hole_inside_the_image(policy: aug.Policy, side: int) -> None:
    white = torch.full((1000, 3, 32, 32), 255, dtype=torch.uint8)
    only_cutout = aug.Policy(cutout_p=1.0, cutout_size=policy.cutout_size)
    hole = aug.apply(white, aug.draw(1000, only_cutout, seeded()), only_cutout) == 0
    assert (hole.sum(dim=(2, 3)) == side * side).all()
    rows, columns = hole[:, 0].any(dim=2), hole[:, 0].any(dim=1)
    assert (rows.sum(dim=1) == side).all()
    assert (columns.sum(dim=1) == side).all()
    assert rows.any(dim=0).all(), "the hole never reaches some row"
    assert columns.any(dim=0).all(), "the hole never reaches some column"
    assert not torch.equal(rows, columns)


@pytest.mark.parametrize("name", list(aug.POLICIES))
def test_an_image_for_which_nothing_is_active_is_unchanged(images: Tensor, name: str) -> None:
    assert torch.equal(aug.apply(images, still(len(images)), aug.POLICIES[name]), unit(images))


def test_policy_none_changes_nothing(images: Tensor) -> None:
    assert torch.equal(aug.augment(images, "none", seeded()), unit(images))


# How often and how far


def test_policies_are_the_table_of_the_recipe() -> None:
    full = (0.5, False, 0.5, 0.0625, False, 0.10, 15, 0.5, 8, 0.3, 0.2, 0.2, 0.3, 10, 20, 10)
    reduced = (0.5, False, 0.35, 0.05, False, 0.07, 10, 0.35, 6, 0.2, 0.15, 0.15, 0, 0, 0, 0)
    light, flip_crop = ((0.5, crop, 1.0, 2.5 / 32 if crop else 2 / 32, True, *[0] * 11) for crop in (False, True))
    tables = {"full": full, "reduced": reduced, "light": light, "flip-crop": flip_crop, "none": (0,) * 16}
    assert {name: dataclasses.astuple(policy) for name, policy in aug.POLICIES.items()} == tables


def assert_rate(active: Tensor, p: float) -> None:
    sigma = math.sqrt(p * (1 - p) / len(active))
    assert abs(active.double().mean().item() - p) <= 4 * sigma


def assert_range(values: Tensor, active: Tensor, width: float) -> None:
    """Uniform in plus or minus `width` where active, nearly all of it, and 0 elsewhere."""
    values, tolerance = values.double(), 1e-4 * max(width, 1)
    assert (values[~active].abs() < tolerance).all()
    assert values.abs().max() <= width + tolerance
    if width:
        assert values.min() < -0.99 * width
        assert values.max() > 0.99 * width
        assert values[active].std().item() == pytest.approx(width / math.sqrt(3), rel=0.03)


@pytest.mark.parametrize("name", ["full", "reduced"])
def test_rates_and_ranges_are_those_of_the_policy(name: str) -> None:
    policy = aug.POLICIES[name]
    draws = aug.draw(MANY, policy, seeded(3))
    move = undone(draws.matrix)
    moved = (move["x"].abs() > 1e-4) | (move["y"].abs() > 1e-4)
    assert_rate(move["flip"], policy.flip_p)
    assert_range(move["x"], moved, policy.shift * 32)
    assert_range(move["y"], moved, policy.shift * 32)
    assert_range(move["scale"] - 1, moved, policy.scale)
    assert_range(move["angle"], moved, policy.rotate)
    assert_rate(moved, policy.affine_p)
    lit = (draws.brightness != 1) | (draws.contrast != 1)
    tinted = (draws.hsv != 0).any(dim=1)
    cut = (draws.hole < 32).any(dim=1)
    assert_rate(lit, policy.brightness_contrast_p)
    assert_range(draws.brightness - 1, lit, policy.brightness)
    assert_range(draws.contrast - 1, lit, policy.contrast)
    assert_rate(tinted, policy.hsv_p)
    for shift, width in zip(draws.hsv.unbind(1), (policy.hue, policy.saturation, policy.value), strict=True):
        assert_range(shift, tinted, width)
    assert_rate(cut, policy.cutout_p)
    corners = draws.hole[cut]
    assert corners.unique().tolist() == list(range(32 - policy.cutout_size + 1))


def test_light_flips_and_shifts_by_whole_pixels_and_does_nothing_else(images: Tensor) -> None:
    draws = aug.draw(MANY, aug.POLICIES["light"], seeded(3))
    move = undone(draws.matrix)
    assert_rate(move["flip"], 0.5)
    for shift in (move["x"], move["y"]):
        assert shift.unique().tolist() == [-2, -1, 0, 1, 2]
    assert ((move["scale"] == 1) & (move["angle"] == 0)).all()
    assert (draws.brightness == 1).all()
    assert (draws.contrast == 1).all()
    assert (draws.hsv == 0).all()
    assert (draws.hole == 32).all()
    moved = aug.apply(images, draws[: len(images)], aug.POLICIES["light"])
    assert all(set(after.flatten().tolist()) <= set(before.flatten().tolist()) for before, after in
               zip(unit(images), moved, strict=True)), "nothing is blurred"  # fmt: skip


def test_a_crop_is_moved_by_each_number_of_pixels_equally_often() -> None:
    move = undone(aug.draw(MANY, aug.POLICIES["flip-crop"], seeded(5)).matrix)
    for shift in (move["x"], move["y"]):
        for pixels in (-2, -1, 0, 1, 2):
            assert_rate(shift == pixels, 0.2)


def test_each_image_and_each_operation_draws_on_its_own() -> None:
    draws = aug.draw(MANY, FULL, seeded(4))
    move = undone(draws.matrix)
    active = torch.stack(
        [
            move["flip"],
            move["x"].abs() > 1e-4,
            draws.brightness != 1,
            draws.hsv[:, 0] != 0,
            draws.hole[:, 0] < 32,
        ]
    )
    neighbours = torch.cat([active, active.roll(1, dims=1)])  # each operation, here and in the image before
    correlation = torch.corrcoef(neighbours.double())
    assert (correlation - torch.eye(10)).abs().max() < 5 / math.sqrt(MANY)
    numbers = [move["x"], move["y"], move["scale"], move["angle"], *draws.hsv.unbind(1)]
    both = active[1] & active[3]
    correlation = torch.corrcoef(torch.stack([number.double()[both] for number in numbers]))
    assert (correlation - torch.eye(7)).abs().max() < 5 / math.sqrt(int(both.sum()))
    assert len(move["angle"][active[1]].unique()) > 0.99 * int(active[1].sum())


def test_reduced_never_changes_the_hue() -> None:
    pixels = torch.zeros(500, 3, 32, 32, dtype=torch.uint8)
    pixels[:, 0] = torch.randint(50, 200, (500, 32, 32), generator=seeded()).to(torch.uint8)  # pure red
    # Contrast is left out: it mixes in grey, which keeps the hue but puts something into green and blue.
    draws = dataclasses.replace(aug.draw(500, REDUCED, seeded()), contrast=torch.ones(500))
    assert aug.apply(pixels, draws, REDUCED)[:, 1:].max() == 0
    assert aug.augment(pixels, "full", seeded())[:, 1:].max() > 0.01


# Where the random numbers come from


def fields_of(draws: aug.Draws) -> list[Tensor]:
    return [getattr(draws, field.name) for field in dataclasses.fields(draws)]


def test_draws_repeat_for_a_seed_and_leave_the_global_generator_alone(images: Tensor) -> None:
    before = torch.get_rng_state()
    first, again, other = (aug.augment(images, "full", seeded(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(aug.draw_mixup(10, 0.2, seeded(7)), aug.draw_mixup(10, 0.2, seeded(7)))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_the_global_seed_decides(images: Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = aug.augment(images, "full")
        second = aug.augment(images, "full")
        torch.manual_seed(5)
        assert torch.equal(aug.augment(images, "full"), first)
        assert not torch.equal(first, second)


def test_augmenting_slice_by_slice_equals_augmenting_at_once(images: Tensor) -> None:
    draws = aug.draw(len(images), FULL, seeded())
    whole = aug.apply(images, draws, FULL)
    steps = [aug.apply(images[i : i + 24], draws[i : i + 24], FULL) for i in range(0, len(images), 24)]
    assert torch.equal(torch.cat(steps), whole)


def test_every_policy_takes_the_same_numbers_from_the_generator() -> None:
    # So a change of policy at an epoch does not change which images are flipped.
    full, reduced = (undone(aug.draw(100, policy, seeded()).matrix)["flip"] for policy in (FULL, REDUCED))
    assert torch.equal(full, reduced)


# What surrounds it


@pytest.mark.parametrize("name", list(aug.POLICIES))
def test_apply_compiles_without_a_graph_break(images: Tensor, name: str) -> None:
    policy = aug.POLICIES[name]
    draws = aug.draw(len(images), policy, seeded())

    def step(images: Tensor, draws: aug.Draws, lam: Tensor) -> Tensor:
        return aug.mixup(aug.normalize(aug.apply(images, draws, policy)), lam)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    lam = torch.tensor(0.3)
    torch.testing.assert_close(compiled(images, draws, lam), step(images, draws, lam), atol=1e-5, rtol=0)


def test_autocast_does_not_touch_the_precision(images: Tensor) -> None:
    draws = aug.draw(len(images), FULL, seeded())
    expected = aug.apply(images, draws, FULL)
    with torch.autocast("cpu", torch.bfloat16):
        got = aug.apply(images, draws, FULL)
        normal = aug.normalize(got)
    assert got.dtype == normal.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_channels_last_images_give_the_same(images: Tensor) -> None:
    draws = aug.draw(len(images), FULL, seeded())
    got = aug.apply(images.contiguous(memory_format=torch.channels_last), draws, FULL)
    torch.testing.assert_close(got, aug.apply(images, draws, FULL), atol=1e-6, rtol=0)


def test_result_is_in_0_to_1_and_the_input_is_untouched(images: Tensor) -> None:
    before = images.clone()
    out = aug.augment(images, "full", seeded())
    assert out.dtype == torch.float32
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(images, before)


def test_normalize_equals_torchvision(images: Tensor) -> None:
    expected = tvf.normalize(unit(images), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    torch.testing.assert_close(aug.normalize(unit(images)), expected)


def test_an_unknown_policy_is_refused_with_the_names_there_are(images: Tensor) -> None:
    with pytest.raises(ValueError, match="'ful'.*full, reduced"):
        aug.augment(images, "ful")


def test_images_that_are_no_longer_bytes_are_refused(images: Tensor) -> None:
    with pytest.raises(TypeError, match=r"uint8.*float32"):
        aug.augment(unit(images), "full")


# MixUp


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "1-d"])
def test_mixup_loss_equals_cross_entropy_with_soft_labels(smoothing: float, shape: tuple[int, ...]) -> None:
    generator = seeded()
    logits = torch.randn(32, 100, generator=generator, requires_grad=True)
    labels = torch.randint(100, (32,), generator=generator)
    lam = torch.full(shape, 0.3)
    loss = aug.mixup_cross_entropy(logits, labels, labels.roll(1), lam, smoothing)
    one_hot = F.one_hot(labels, 100) * (1 - smoothing) + smoothing / 100
    targets = 0.3 * one_hot + 0.7 * one_hot.roll(1, 0)
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, (logits.softmax(dim=1) - targets).detach() / 32)


def test_mixup_mixes_the_same_pairs_in_images_and_labels() -> None:
    labels = torch.arange(8)
    one_hot = F.one_hot(labels, 8).float()
    mixed = aug.mixup(one_hot[:, :, None, None], torch.tensor(0.7))[:, :, 0, 0]
    # With the mixed labels' own logarithms for logits, the loss is the entropy of (.7, .3): its least value.
    loss = aug.mixup_cross_entropy((mixed + 1e-12).log(), labels, labels.roll(1), torch.tensor(0.7))
    assert loss.item() == pytest.approx(-(0.7 * math.log(0.7) + 0.3 * math.log(0.3)), abs=1e-5)


def test_mixup_with_lambda_1_is_no_mixup(images: Tensor) -> None:
    one, labels = torch.tensor(1.0), torch.arange(64)
    logits = torch.randn(64, 100, generator=seeded())
    assert torch.equal(aug.mixup(unit(images), one), unit(images))
    plain = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(aug.mixup_cross_entropy(logits, labels, labels.roll(1), one, 0.1), plain)


def test_mixup_loss_of_half_precision_logits_is_float32() -> None:
    logits, labels = torch.randn(8, 100, generator=seeded()).bfloat16(), torch.arange(8)
    loss = aug.mixup_cross_entropy(logits, labels, labels.roll(1), torch.tensor(0.5))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, aug.mixup_cross_entropy(logits.float(), labels, labels.roll(1), torch.tensor(0.5))
    )


@pytest.mark.parametrize("alpha", [0.15, 0.2, 1.0])
def test_lambdas_follow_the_beta_distribution(alpha: float) -> None:
    lam = aug.draw_mixup(MANY, alpha, seeded(2))
    assert lam.shape == (MANY,)
    assert lam.dtype == torch.float32
    assert 0 <= lam.min() <= lam.max() <= 1
    deviation = math.sqrt(1 / (4 * (2 * alpha + 1)))  # of Beta(alpha, alpha)
    assert abs(lam.mean().item() - 0.5) < 4 * deviation / math.sqrt(MANY)
    assert lam.std().item() == pytest.approx(deviation, rel=0.02)
    below, above = (lam < 0.1).double().mean().item(), (lam > 0.9).double().mean().item()
    assert abs(below - above) < 4 * math.sqrt(2 * below / MANY)


def test_alpha_0_means_no_mixup() -> None:
    assert torch.equal(aug.draw_mixup(5, 0.0, seeded()), torch.ones(5))


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(aug.POLICIES))
def test_gpu_equals_cpu_and_no_step_waits_for_it(images: Tensor, name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    policy = aug.POLICIES[name]
    draws, lam, labels = aug.draw(len(images), policy, seeded()), torch.tensor([0.3]), torch.arange(64)
    expected = aug.apply(images, draws, policy)
    there = images.cuda()
    draws_there, lam_there, labels_there = draws.to("cuda"), lam.cuda(), labels.cuda()
    logits = torch.randn(64, 100, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = aug.apply(there, draws_there[:64], policy)
        mixed = aug.mixup(aug.normalize(got), lam_there)
        loss = aug.mixup_cross_entropy(logits, labels_there, labels_there.roll(1), lam_there, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(got.cpu(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed.cpu(), aug.mixup(aug.normalize(expected), lam), atol=1e-4, rtol=0)
    assert loss.isfinite()
