"""outzoom: compile Stable Diffusion inpainting for edge devices and zoom out with it, endlessly."""

__version__ = "0.1.0"
