"""The page's own modules in Node against the runtime: the same tokens, steps and pixels."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from outzoom.runtime.geometry import outside_mask, paste_centered
from outzoom.runtime.schedulers import default_scheduler, make_scheduler
from outzoom.runtime.tokenizer import ClipTokenizer

TESTS = Path(__file__).parent
TOKENIZER = TESTS.parent / "models" / "demo" / "tokenizer"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")
STEP_TOLERANCE = 1e-5  # of the largest value: float32 is rounded at other places
PROMPTS = [
    "",
    "an underwater reef with orange fish",
    "A NIGHT Sky",
    "it's the fish we've seen, they're I'm you'd don't we'll THE'RE ''s 's's",
    "3 fish, 1234 stars, १२३ ٣ ½ Ⅷ",
    "reef!!! _under_score-dash—em… (what?!) !",
    "  tabs\t and\nlines\r\n \u00a0and \u2003others \u200b \ufeff\u0085 ",
    "é café ÅÄÖ İstanbul ß ẞ ΟΔΟΣ",
    "a\u0301 n\u0303 ﬁ",
    "海の魚 рыба سمك",
    "🐟🐠 a 👩‍👩‍👧 reef 🏳️‍🌈",
    "a\x00b\x1fc\x85d",
    "<|endoftext|> b <|startoftext|>a<|endoftext|>b <|EndOfText|>",
    "x" * 300,
    "a reef " * 500,
    "a " * 74 + "kaleidoscopic",
]
MODEL = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False, "skip_prk_steps": True,
}  # fmt: skip
CLASSES = [
    "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "LCMScheduler",
    "SomeOtherScheduler",
]  # fmt: skip


def ask(call, **request):
    """What a function of the page makes of a request."""
    text = json.dumps({"call": call, **request})
    done = subprocess.run(
        [NODE, TESTS / "page_modules.mjs"], input=text, capture_output=True, text=True, timeout=120, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def old_form():
    model = json.loads((TOKENIZER / "tokenizer.json").read_text("utf-8"))["model"]
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    return {"vocab.json": json.dumps(model["vocab"]), "merges.txt": f"#version: 0.2\n{merges}"}


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json and merges.txt"])
def test_the_tokens_of_any_prompt_are_those_of_the_runtime(tmp_path, form):
    files = {"tokenizer_config.json": (TOKENIZER / "tokenizer_config.json").read_text("utf-8")}
    files |= {form: (TOKENIZER / form).read_text("utf-8")} if form == "tokenizer.json" else old_form()
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    alphabet = np.array(list("aAbé's!.<|> \t\n1Σ\u03c3İ魚🐟\u0301\ufeff"))
    rng = np.random.default_rng(3)
    random = ["".join(rng.choice(alphabet, rng.integers(1, 60))) for _ in range(300)]
    ours = ClipTokenizer(tmp_path, 77)
    made = ask("tokenize", files=files, maxTokens=77, prompts=PROMPTS + random)["made"]
    for prompt, found in zip(PROMPTS + random, made, strict=True):
        assert found == {"ids": ours.encode(prompt)[0].tolist(), "count": ours.count(prompt)}, repr(prompt)


@pytest.mark.parametrize("files", [{}, {"tokenizer.json": "{}"}, {"vocab.json": "{}", "merges.txt": ""}])
def test_a_damaged_tokenizer_is_refused_with_a_hint(files):
    answer = ask("tokenize", files=files, maxTokens=77, prompts=[""])
    assert "tokenizer can't be read" in answer["error"]
    assert answer["hint"]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_step_is_that_of_the_runtime(name, prediction, spacing):
    steps = 7
    config = {**MODEL, "_class_name": name, "prediction_type": prediction, "timestep_spacing": spacing}
    ours = make_scheduler(default_scheduler(config), config, steps)
    rng = np.random.default_rng(5)
    calls = len(ours.timesteps)
    start = rng.standard_normal(32, np.float32)
    outputs, noises = (rng.standard_normal((calls, 32), np.float32) for _ in range(2))
    made = ask(
        "schedule", config=config, steps=steps, start=start.tolist(), outputs=outputs.tolist(), noises=noises.tolist()
    )["made"]
    assert made["timesteps"] == ours.timesteps.tolist()
    sample = start * np.float32(ours.init_noise_sigma)
    for call in range(calls):
        scaled = ours.scale_model_input(sample, call)
        assert np.abs(scaled - made["inputs"][call]).max() <= STEP_TOLERANCE * np.abs(scaled).max()
        sample = ours.step(outputs[call], call, sample, noises[call])
        assert np.abs(sample - made["samples"][call + 1]).max() <= STEP_TOLERANCE * np.abs(sample).max()


@pytest.mark.parametrize(
    "change",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.001 * (i + 1) for i in range(40)], "num_train_timesteps": 40},
        {"rescale_betas_zero_snr": True},
        {"clip_sample": True, "clip_sample_range": 0.5},
        {"set_alpha_to_one": True},
        {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True},
        {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
    ],
    ids=lambda change: next(reversed(change)),
)
def test_what_a_configuration_says_is_done_as_in_the_runtime(change):
    config = {**MODEL, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction", **change}
    ours = make_scheduler(default_scheduler(config), config, 5)
    rng = np.random.default_rng(6)
    start, output = (rng.standard_normal(16, np.float32) for _ in range(2))
    made = ask(
        "schedule", config=config, steps=5, start=start.tolist(), outputs=[output.tolist()] * 5, noises=[[]] * 5
    )["made"]
    assert made["timesteps"] == ours.timesteps.tolist()
    sample = start * np.float32(ours.init_noise_sigma)
    for call in range(5):
        sample = ours.step(output, call, sample)
    assert np.abs(sample - made["samples"][-1]).max() <= STEP_TOLERANCE * np.abs(sample).max()


@pytest.mark.parametrize("steps", [0, 1.5, 10_000])
def test_a_number_of_steps_that_does_not_go_is_refused(steps):
    config = {**MODEL, "_class_name": "DDIMScheduler"}
    answer = ask("schedule", config=config, steps=steps, start=[], outputs=[], noises=[])
    assert "steps" in answer["error"]


@pytest.mark.parametrize(
    "change", [{"prediction_type": "flow"}, {"beta_start": "0.1"}, {"beta_end": 2}, {"num_train_timesteps": 1e9}]
)
def test_a_configuration_that_does_not_go_is_refused_by_its_key(change):
    config = {**MODEL, "_class_name": "DDIMScheduler", **change}
    answer = ask("schedule", config=config, steps=5, start=[], outputs=[], noises=[])
    assert next(iter(change)) in answer["error"]
    assert answer["hint"]


@pytest.mark.parametrize("feather_px", [0.0, 0.4, 5.3])
@pytest.mark.parametrize("scale", [0.25, 1 / 3, 0.5, 0.77, 0.97])
@pytest.mark.parametrize("size", [(64, 64), (61, 40), (40, 61)])
def test_pasting_is_the_runtimes_pixel_for_pixel(size, scale, feather_px):
    width, height = size
    canvas, picture = np.random.default_rng(7).integers(0, 256, (2, height, width, 3), np.uint8)
    canvas[:8], picture[:, :8] = 0, 255  # edges at which a bicubic overshoots
    given = [{"width": width, "height": height, "data": one.ravel().tolist()} for one in (canvas, picture)]
    made = ask("paste", canvas=given[0], picture=given[1], scale=scale, featherPx=feather_px)["made"]
    assert made["mask"] == outside_mask(size, scale).ravel().tolist()
    difference = np.abs(np.array(made["data"]) - paste_centered(canvas, picture, scale, feather_px).ravel().astype(int))
    # from version 13 on Pillow takes the columns of tall pictures first, and rounds to bytes after those
    assert difference.max() == 0 if width >= height else difference.mean() < 0.1


def test_noise_is_normal_and_another_one_for_every_seed_and_keyframe():
    numbers = [[0, 1], [0, 2], [1, 1], [2**40, 1], [0, 1]]
    made = np.array(ask("noise", count=20_000, numbers=numbers)["made"])
    assert np.abs(made.mean(1)).max() < 0.03
    assert np.abs(made.std(1) - 1).max() < 0.03
    assert np.isfinite(made).all()
    assert (made[0] == made[4]).all()
    correlations = np.corrcoef(made[:4])
    assert np.abs(correlations[~np.eye(4, dtype=bool)]).max() < 0.04
