"""Recipes of few bits whose calibration is short, for tests that need the graphs more than the quality."""

HEADER = 'description = "test"\nweights = "float16"\ncompute = "fastest"\nmin_psnr_db = 10\n'
CALIBRATION = '[calibration]\nprompts = ["a town with red roofs at noon"]\nkeyframes = 1\nsteps = 2\n'
RULES = {
    "int8": 'activations = { range = "minmax", products = true }\n[[rules]]\nengine = "int8"\n',
    "int4": 'pointwise_as_products = true\nactivations = { range = "minmax" }\n'
    '[[rules]]\noperators = ["MatMul"]\nstore = { method = "int4", block = 32 }\nengine = "int4"\n'
    '[[rules]]\nstore = { method = "int4", block = 32 }\nengine = "int8"\n',
}


def write_recipes(folder):
    """Write them as files; the names of those that come with outzoom, and these files, for build_bundles."""
    for name, rules in RULES.items():
        (folder / f"{name}.toml").write_text(HEADER + rules + CALIBRATION)
    return ["fp32", "fp16", *(str(folder / f"{name}.toml") for name in RULES)]
