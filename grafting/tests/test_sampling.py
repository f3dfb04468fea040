"""Sampling against hand-written loops on a tiny random transformer."""

from __future__ import annotations

import pytest
import torch

from grafting.conditions import MASK, TEXT
from grafting.random import generator
from grafting.sampling import Pipeline, Sampling, draw_labels


@pytest.fixture(scope="module")
def transformer():
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=4,
        patch_size=1,
        num_embeds_ada_norm=5,
    )
    for parameter in model.parameters():  # adaLN starts at zero, where labels would not matter
        torch.nn.init.normal_(parameter, std=0.15)
    return model.train()


def alphas() -> torch.Tensor:
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def model_call(transformer, z, t, y):
    transformer.eval()
    with torch.no_grad():
        return transformer(z.float(), timestep=torch.full((len(z),), t), class_labels=y).sample.double()


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm++"])
def test_pictures_do_not_depend_on_the_batch(transformer, scheduler):
    sampling = Sampling(scheduler=scheduler, steps=6, guidance=2.0)
    pipeline = Pipeline(transformer)
    whole = pipeline([0, 1, 2, 3, 4], sampling=sampling, seed=3, batch_size=5)
    parts = pipeline([0, 1, 2, 3, 4], sampling=sampling, seed=3, batch_size=2)
    tail = pipeline([3, 4], sampling=sampling, seed=3, first_index=3)
    torch.testing.assert_close(whole, parts, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(whole[3:], tail, atol=2e-4, rtol=2e-4)
    assert not torch.allclose(whole, pipeline([0, 1, 2, 3, 4], sampling=sampling, seed=4), atol=0.1)


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_ddim_equals_the_formula(transformer, spacing):
    n = 7
    timesteps = (
        torch.linspace(999, 0, n).round() if spacing == "linspace" else torch.arange(n - 1, -1, -1) * (1000 // n)
    )
    z = torch.stack([torch.randn(4, 4, 4, generator=generator(1, "sample", k)) for k in range(3)]).double()
    y = torch.tensor([0, 4, 2])
    steps = [int(t) for t in timesteps]
    for t, after in zip(steps, [*steps[1:], None], strict=True):
        a, b = alphas()[t], torch.tensor(1.0) if after is None else alphas()[after]
        noise = model_call(transformer, z, t, y)[:, :4]
        z = b.sqrt() * (z - (1 - a).sqrt() * noise) / a.sqrt() + (1 - b).sqrt() * noise
    got = Pipeline(transformer)(y, sampling=Sampling(scheduler="ddim", steps=n, spacing=spacing), seed=1)
    torch.testing.assert_close(got.double(), z, atol=1e-3, rtol=1e-3)


def test_ddim_equals_diffusers_where_its_step_is_right(transformer):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(timestep_spacing="leading", clip_sample=False)
    theirs.set_timesteps(10)
    z = torch.randn(4, 4, 4, generator=generator(0, "sample", 0))[None]
    for t in theirs.timesteps:
        noise = model_call(transformer, z, int(t), torch.tensor([1]))[:, :4].float()
        z = theirs.step(noise, t, z).prev_sample
    got = Pipeline(transformer)([1], sampling=Sampling(scheduler="ddim", steps=10, spacing="leading"))
    torch.testing.assert_close(got, z, atol=1e-3, rtol=1e-3)


def test_ddim_with_another_schedule_equals_diffusers(transformer):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_start=2e-4, beta_end=0.012, timestep_spacing="leading", clip_sample=False)
    theirs.set_timesteps(10)
    z = torch.randn(4, 4, 4, generator=generator(0, "sample", 0))[None]
    for t in theirs.timesteps:
        z = theirs.step(model_call(transformer, z, int(t), torch.tensor([1]))[:, :4].float(), t, z).prev_sample
    pipeline = Pipeline(transformer, scheduler={"beta_start": 2e-4, "beta_end": 0.012})
    got = pipeline([1], sampling=Sampling(scheduler="ddim", steps=10, spacing="leading"))
    torch.testing.assert_close(got, z, atol=1e-3, rtol=1e-3)


def test_ddim_bounds_the_clean_sample_where_it_is_asked_to(transformer):
    """By hand: the clean sample cut, the noise as it was predicted."""
    n, y = 6, torch.tensor([2, 0])
    z = torch.stack([torch.randn(4, 4, 4, generator=generator(1, "sample", k)) for k in range(2)]).double()
    steps, beyond = [int(t) for t in torch.linspace(999, 0, n).round()], 0.0
    for t, after in zip(steps, [*steps[1:], None], strict=True):
        a, b = alphas()[t], torch.tensor(1.0) if after is None else alphas()[after]
        noise = model_call(transformer, z, t, y)[:, :4]
        clean = (z - (1 - a).sqrt() * noise) / a.sqrt()
        beyond = max(beyond, clean.abs().max().item())
        z = b.sqrt() * clean.clamp(-1, 1) + (1 - b).sqrt() * noise
    got = Pipeline(transformer)(y, sampling=Sampling(scheduler="ddim", steps=n, clip=True), seed=1)
    assert beyond > 2
    torch.testing.assert_close(got.double(), z, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("clip", [False, True])
def test_ddpm_without_a_learned_variance_takes_the_posterior_s(clip):
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=4, patch_size=1,
        num_embeds_ada_norm=5,
    )  # fmt: skip
    n, y, source = 5, torch.tensor([3]), generator(2, "sample", 0)
    z = torch.randn(4, 4, 4, generator=source)[None].double()
    steps = [int(t) for t in torch.linspace(999, 0, n).round()]
    for t, after in zip(steps, [*steps[1:], None], strict=True):
        a, before = alphas()[t], torch.tensor(1.0, dtype=torch.float64) if after is None else alphas()[after]
        beta = 1 - a / before
        clean = (z - (1 - a).sqrt() * model_call(model, z, t, y)) / a.sqrt()
        clean = clean.clamp(-1, 1) if clip else clean
        z = before.sqrt() * beta / (1 - a) * clean + (1 - beta).sqrt() * (1 - before) / (1 - a) * z
        if after is not None:
            z = z + ((1 - before) / (1 - a) * beta).sqrt() * torch.randn(1, 4, 4, 4, generator=source).double()
    got = Pipeline(model)(y, sampling=Sampling(scheduler="ddpm", steps=n, clip=clip), seed=2)
    torch.testing.assert_close(got.double(), z, atol=2e-3, rtol=2e-3)


def test_ddpm_uses_the_learned_variance_of_the_respaced_chain(transformer):
    n, seed, y = 5, 2, torch.tensor([3])
    source = generator(seed, "sample", 0)
    z = torch.randn(4, 4, 4, generator=source)[None].double()
    timesteps = [int(t) for t in torch.linspace(999, 0, n).round()]
    for t, after in zip(timesteps, [*timesteps[1:], None], strict=True):
        a, before = alphas()[t], torch.tensor(1.0, dtype=torch.float64) if after is None else alphas()[after]
        beta = 1 - a / before
        noise, v = model_call(transformer, z, t, y).chunk(2, dim=1)
        clean = (z - (1 - a).sqrt() * noise) / a.sqrt()
        mean = before.sqrt() * beta / (1 - a) * clean + (1 - beta).sqrt() * (1 - before) / (1 - a) * z
        if after is not None:
            low, high = ((1 - before) / (1 - a) * beta).log(), beta.log()
            log_variance = (v + 1) / 2 * high + (1 - v) / 2 * low
            mean = mean + (log_variance / 2).exp() * torch.randn(1, 4, 4, 4, generator=source).double()
        z = mean
    got = Pipeline(transformer)(y, sampling=Sampling(scheduler="ddpm", steps=n), seed=seed)
    torch.testing.assert_close(got.double(), z, atol=2e-3, rtol=2e-3)


def test_original_spacing_is_999_995_to_0():
    from grafting.steps import noise_stepper

    linspace = noise_stepper({}, Sampling.original(), True, torch.device("cpu")).timesteps
    assert linspace[:2].tolist() == [999, 995] and linspace[-1] == 0 and len(linspace) == 250
    leading = noise_stepper({}, Sampling(steps=250, spacing="leading"), True, torch.device("cpu")).timesteps
    assert leading[:2].tolist() == [996, 992]


def test_guidance_on_three_channels_leaves_the_fourth_alone(transformer):
    pipeline = Pipeline(transformer.eval())
    z, t, y = torch.randn(2, 4, 4, 4, generator=generator(0, "z")), torch.tensor(700), torch.tensor([1, 2])
    with torch.no_grad():
        plain = pipeline._predict(z, t, y, Sampling())
        free = pipeline._predict(z, t, torch.full_like(y, 5), Sampling())
        three = pipeline._predict(z, t, y, Sampling(guidance=3.0, guided_channels=3))
        every = pipeline._predict(z, t, y, Sampling(guidance=3.0))
    guided = free + 3 * (plain - free)
    assert (guided - plain).abs().amin((0, 2, 3)).max() > 1e-3  # or the rest would hold by itself
    torch.testing.assert_close(three[:, :3], guided[:, :3])
    torch.testing.assert_close(three[:, 3:], plain[:, 3:])
    torch.testing.assert_close(every[:, :4], guided[:, :4])
    torch.testing.assert_close(every[:, 4:], plain[:, 4:])


def test_no_guidance_is_one_pass_and_the_mode_of_the_model_is_kept(transformer):
    batches = []
    hook = transformer.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    seen = []
    transformer.train()
    Pipeline(transformer)([0, 1, 2], sampling=Sampling(steps=2), batch_size=2, progress=lambda *x: seen.append(x))
    Pipeline(transformer)([0], sampling=Sampling(steps=2, guidance=1.5))
    hook.remove()
    assert batches == [2, 2, 1, 1, 2, 2]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert transformer.training and transformer.transformer_blocks[0].training


def test_decoding_undoes_scale_and_shift():
    class Vae(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.config = type("Config", (), {"scaling_factor": 0.5, "shift_factor": 0.25})()

        def decode(self, z):
            return type("Out", (), {"sample": z})()

    class Host(torch.nn.Module):
        config = type("C", (), {"in_channels": 1, "sample_size": 2, "out_channels": 1, "num_embeds_ada_norm": 3})()

    z = torch.ones(1, 1, 2, 2)
    torch.testing.assert_close(Pipeline(Host(), Vae()).decode(z), 2 * z + 0.25)
    # Large latents go through one by one, and come back in their order.
    sizes = []
    vae = Vae()
    vae.decode = lambda z, plain=vae.decode: sizes.append(len(z)) or plain(z)
    large = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 128, 128)
    torch.testing.assert_close(Pipeline(Host(), vae).decode(large), 2 * large + 0.25)
    assert sizes == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scheduler": "euler"}, "'euler' is not one of ddpm, ddim, dpm"),
        ({"steps": 1}, "1 sampling steps"),
        ({"guidance": -1.0}, "guidance -1.0"),
        ({"spacing": "trailing"}, "linspace, leading"),
        ({"scheduler": "dpm++", "clip": True}, "no meaning"),
    ],
)
def test_bad_options_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sampling(**options)


def test_bad_labels_and_schedules(transformer):
    with pytest.raises(ValueError, match="label 6: this model knows classes 0 to 4"):
        Pipeline(transformer)([6])
    with pytest.raises(ValueError, match="the samples have 4"):
        Pipeline(transformer)([0], sampling=Sampling(guidance=2, guided_channels=5))
    with pytest.raises(ValueError, match="2000 sampling steps"):
        Pipeline(transformer)([0], sampling=Sampling(steps=2000))
    with pytest.raises(ValueError, match="v_prediction"):
        Pipeline(transformer, scheduler={"prediction_type": "v_prediction"})


def test_labels():
    assert draw_labels(7, 3).tolist() == [0, 1, 2, 0, 1, 2, 0]
    drawn = draw_labels(3000, 3, "uniform", seed=1)
    assert drawn.min() == 0 and drawn.max() == 2 and not torch.equal(drawn, draw_labels(3000, 3, "uniform", seed=2))
    assert (drawn == 0).float().mean().item() == pytest.approx(1 / 3, abs=0.04)


def test_bfloat16_draws_nearly_the_same_pictures_and_says_so(transformer):
    pipeline, labels = Pipeline(transformer), torch.tensor([0, 1])
    exact = pipeline(labels, sampling=Sampling(steps=3))
    sampling = Sampling(steps=3, precision="bf16")
    rough = pipeline(labels, sampling=sampling)
    assert not torch.equal(exact, rough) and (exact - rough).norm() < 0.1 * exact.norm()
    assert sampling.describe().endswith(", bf16") and "bf16" not in Sampling(steps=3).describe()
    with pytest.raises(ValueError, match="precision 'fp8' is not one of fp32, bf16"):
        Sampling(precision="fp8")


@pytest.fixture(scope="module")
def painter():
    """A PixArt that listens to its text, and what stands for no text."""
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=6,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        use_additional_conditions=False,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval(), {TEXT: torch.randn(1, 2, 6), MASK: torch.ones(1, 2, dtype=torch.int64)}


def captions(n: int) -> dict[str, torch.Tensor]:
    """Texts of unequal lengths; what stands where the mask is 0 must not matter, so it is large."""
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 4, 2])[:n, None]
    states = torch.randn(n, 5, 6, generator=generator(0, "captions"))
    return {TEXT: torch.where(mask[..., None], states, 50.0), MASK: mask.long()}


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm++"])
def test_pictures_of_text_do_not_depend_on_the_batch(painter, scheduler):
    model, null = painter
    pipeline, sampling, given = (
        Pipeline(model, null=null),
        Sampling(scheduler=scheduler, steps=4, guidance=2.0),
        captions(5),
    )
    whole = pipeline(given, sampling=sampling, seed=3)
    torch.testing.assert_close(whole, pipeline(given, sampling=sampling, seed=3, batch_size=2), atol=1e-3, rtol=1e-3)
    last = {TEXT: given[TEXT][4:, :2], MASK: given[MASK][4:, :2]}
    tail = pipeline(last, sampling=sampling, seed=3, first_index=4)
    torch.testing.assert_close(whole[4:], tail, atol=1e-3, rtol=1e-3)


def test_guidance_of_text_is_away_from_the_null_condition(painter):
    """By hand: two separate passes, each with its own unpadded text."""
    model, null = painter
    pipeline, given = Pipeline(model, null=null), captions(2)
    z, t = torch.randn(2, 4, 4, 4, generator=generator(0, "z")), torch.tensor(700)
    with torch.no_grad():
        found = pipeline._predict(z, t, given, Sampling(guidance=3.0))
        for k, length in enumerate((5, 3)):
            alone = {TEXT: given[TEXT][k : k + 1, :length], MASK: torch.ones(1, length)}
            added = {"resolution": None, "aspect_ratio": None}
            told, free = (
                model(z[k : k + 1], timestep=t[None], added_cond_kwargs=added, **text).sample for text in (alone, null)
            )
            torch.testing.assert_close(found[k : k + 1, :4], (free + 3 * (told - free))[:, :4], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found[k : k + 1, 4:], told[:, 4:], atol=1e-4, rtol=1e-4)
            assert (told - free)[:, :4].abs().max() > 1e-2


def test_prompts_go_through_what_embeds_them(painter):
    class Book:
        null = painter[1]

        def __call__(self, prompts):
            return {key: value[[int(prompt) for prompt in prompts]] for key, value in captions(5).items()}

    pipeline, sampling = Pipeline(painter[0], text=Book()), Sampling(steps=2, guidance=1.5)
    states = Pipeline(painter[0], null=painter[1])(Book()(["3", "1"]), sampling=sampling)
    assert torch.equal(pipeline(["3", "1"], sampling=sampling), states)


def test_conditions_of_the_other_kind_are_refused(painter, transformer):
    model, null = painter
    for wrong in ([1, 2], torch.tensor([1]), "a disc", []):
        with pytest.raises(ValueError, match="conditioned on text: give prompts"):
            Pipeline(model, null=null).latents(wrong)
    with pytest.raises(ValueError, match="prompts need an encoder"):
        Pipeline(model, null=null).latents(["a disc"])
    with pytest.raises(ValueError, match="guidance 2 needs the null condition"):
        Pipeline(model).latents(captions(1), sampling=Sampling(guidance=2.0))
    with pytest.raises(ValueError, match="conditioned on classes"):
        Pipeline(transformer).latents(captions(1))


def test_latents_of_another_size_are_walked_at_their_own_shift() -> None:
    """Of a rectangle as the model is called with it, and of a flow whose shift follows the number of tokens."""
    from test_hosts_table import ready

    model, _, _, condition = ready("Flux dev, no square")
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    sampling = Sampling(steps=2)
    drawn = {size: Pipeline(model, size=size).latents(condition, sampling=sampling) for size in (None, (8, 8), (4, 8))}
    assert torch.equal(drawn[None], drawn[8, 8]) and drawn[4, 8].shape == (2, 3, 4, 8)
    assert seen[-2:] == [(2, 2 * 4, 12)] * 2
    walks = [Pipeline(model, size=size)._stepper(sampling, torch.device("cpu")) for size in (None, (4, 16), (4, 8))]
    own, alike, smaller = (walk.timesteps for walk in walks)
    assert torch.equal(own, alike) and not torch.equal(own, smaller)
    with pytest.raises(ValueError, match="latents of 3 x 8: multiples of 2"):
        Pipeline(model, size=(3, 8))


def test_a_dit_draws_squares_alone(transformer) -> None:
    assert Pipeline(transformer, size=(6, 6)).latents([0], sampling=Sampling(steps=2)).shape == (1, 4, 6, 6)
    with pytest.raises(ValueError, match="4 x 6 tokens: a DiT puts its tokens together as a square"):
        Pipeline(transformer, size=(4, 6))
