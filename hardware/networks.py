"""The shapes of the networks that papers on memory traffic measure, at batch 1: AlexNet, VGG-16 and others.

Pooling and upsampling have no layer of their own: they belong to the link between two layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .schedule import Link
from .workload import Layer


@dataclass(frozen=True)
class Network:
    """Layers in the order in which they run; `links[i]` joins layers i and i + 1, None where nothing flows."""

    name: str
    layers: tuple[Layer, ...]
    links: tuple[Link | None, ...]

    def convolutions(self) -> Network:
        """Without the linear layers at the end."""
        kept = sum(layer.kind != "linear" for layer in self.layers)
        return Network(self.name, self.layers[:kept], self.links[: kept - 1])

    def at_bits(self, bits: int) -> Network:
        """With inputs, weights and outputs of that many bits."""
        layers = tuple(replace(layer, input_bits=bits, weight_bits=bits, output_bits=bits) for layer in self.layers)
        return Network(self.name, layers, self.links)


def conv(
    name: str, out_channels: int, in_channels: int, out_side: int, in_side: int, kernel: int = 3, stride: int = 1,
    groups: int = 1, bits: int = 8,
) -> Layer:  # fmt: skip
    """A square convolution; `in_channels` are those of all groups, `in_side` is without padding."""
    kind = "depthwise" if groups == in_channels and groups > 1 else "conv"
    return Layer(
        name, kind, 1, out_channels, in_channels // groups, out_side, out_side, kernel, kernel, stride, groups,
        bits, bits, bits, in_side, in_side,
    )  # fmt: skip


def linear(name: str, out_features: int, in_features: int, rows: int = 1, bits: int = 8) -> Layer:
    """A linear layer on so many vectors."""
    return Layer(name, "linear", 1, out_features, in_features, rows, 1, 1, 1, 1, 1, bits, bits, bits, rows, 1)


def alexnet() -> Network:
    """AlexNet with its two groups, input 227x227. Source: Krizhevsky et al., NIPS 2012."""
    layers = (
        conv("conv1", 96, 3, 55, 227, 11, 4),
        conv("conv2", 256, 96, 27, 27, 5, groups=2),
        conv("conv3", 384, 256, 13, 13),
        conv("conv4", 384, 384, 13, 13, groups=2),
        conv("conv5", 256, 384, 13, 13, groups=2),
        linear("fc6", 4096, 9216),
        linear("fc7", 4096, 4096),
        linear("fc8", 1000, 4096),
    )
    pool = Link(pool_kernel=3, pool_stride=2)
    return Network("AlexNet", layers, (pool, pool, Link(), Link(), None, Link(), Link()))


def vgg16() -> Network:
    """VGG-16, input 224x224. Source: Simonyan and Zisserman, ICLR 2015, configuration D."""
    layers: list[Layer] = []
    links: list[Link | None] = []
    channels, side = 3, 224
    for stage, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for index in range(1, depth + 1):
            layers.append(conv(f"conv{stage}_{index}", width, channels, side, side))
            links.append(Link() if index < depth else Link(pool_kernel=2, pool_stride=2))
            channels = width
        side //= 2
    links[-1] = None
    layers += [linear("fc6", 4096, 512 * 7 * 7), linear("fc7", 4096, 4096), linear("fc8", 1000, 4096)]
    return Network("VGG-16", tuple(layers), (*links, Link(), Link()))


def mobilenet_v1() -> Network:
    """MobileNetV1 of width 1, input 224x224. Source: Howard et al., arXiv 1704.04861, table 1."""
    layers = [conv("conv1", 32, 3, 112, 224, 3, 2)]
    channels, side = 32, 112
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for number, (width, stride) in enumerate(blocks, 1):
        layers.append(conv(f"dw{number}", channels, channels, side // stride, side, 3, stride, groups=channels))
        side //= stride
        layers.append(conv(f"pw{number}", width, channels, side, side, 1))
        channels = width
    layers.append(linear("fc", 1000, 1024))
    return Network("MobileNetV1", tuple(layers), (*[Link()] * (len(layers) - 2), None))


def unet() -> Network:
    """The first UNet, without padding, input 572x572. Source: Ronneberger et al., MICCAI 2015, figure 1.

    An up-convolution of 2x2 with stride 2 is a 1x1 convolution with four times the channels, whose results are places.
    """
    layers: list[Layer] = []
    links: list[Link | None] = []
    side, channels = 572, 1
    for level, width in enumerate((64, 128, 256, 512, 1024)):
        for index in (1, 2):
            layers.append(conv(f"down{level}_{index}", width, channels, side - 2, side))
            links.append(Link())
            side, channels = side - 2, width
        if level < 4:
            links[-1] = Link(kept=True, pool_kernel=2, pool_stride=2)
            side //= 2
    for level, width in zip((3, 2, 1, 0), (512, 256, 128, 64), strict=True):
        layers.append(conv(f"up{level}", 4 * width, channels, side, side, 1))
        links.append(Link(share=0.5, upsample=2))
        side *= 2
        for index in (1, 2):
            layers.append(conv(f"up{level}_{index}", width, 2 * width if index == 1 else width, side - 2, side))
            links.append(Link())
            side -= 2
        channels = width
    layers.append(conv("out", 2, 64, side, side, 1))
    return Network("UNet", tuple(layers), tuple(links))


def resnet18() -> Network:
    """ResNet-18, input 224x224. Source: He et al., CVPR 2016, table 1.

    A shortcut's convolution runs after the block's two. What enters a block is kept for its shortcut.
    """
    layers = [conv("conv1", 64, 3, 112, 224, 7, 2)]
    links: list[Link | None] = [Link(kept=True, pool_kernel=3, pool_stride=2)]
    channels, side = 64, 56
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in (0, 1):
            stride = 2 if stage > 1 and block == 0 else 1
            prefix, out = f"layer{stage}.{block}", side // stride
            layers.append(conv(f"{prefix}.conv1", width, channels, out, side, 3, stride))
            layers.append(conv(f"{prefix}.conv2", width, width, out, out))
            links += [Link(), Link(kept=True)]
            if stride > 1:
                layers.append(conv(f"{prefix}.downsample", width, channels, out, side, 1, stride))
                links[-1] = None
                links.append(None)  # the sum of both is what enters the next block
            channels, side = width, out
    layers.append(linear("fc", 1000, 512))
    links[-1] = None
    return Network("ResNet-18", tuple(layers), tuple(links))


def sd2_unet(side: int = 64, bits: int = 8) -> tuple[Layer, ...]:
    """The products of one step of Stable Diffusion 2 inpainting's UNet on a latent of that side, batch 1.

    Source: unet/config.json of stable-diffusion-2-inpainting and diffusers' UNet2DConditionModel.
    """
    layers: list[Layer] = []
    skips = [320]

    def add_conv(name: str, out: int, inputs: int, size: int, kernel: int = 3, stride: int = 1) -> None:
        layers.append(conv(name, out, inputs, size, size * stride, kernel, stride, bits=bits))

    def add_linear(name: str, out: int, inputs: int, rows: int = 1) -> None:
        layers.append(linear(name, out, inputs, rows, bits))

    def resnet(name: str, inputs: int, out: int, size: int) -> None:
        add_conv(f"{name}.conv1", out, inputs, size)
        add_linear(f"{name}.time_emb_proj", out, 1280)
        add_conv(f"{name}.conv2", out, out, size)
        if inputs != out:
            add_conv(f"{name}.conv_shortcut", out, inputs, size, 1)

    def transformer(name: str, width: int, size: int) -> None:
        places = size * size
        add_linear(f"{name}.proj_in", width, width, places)
        for attention, keys, inputs in (("attn1", places, width), ("attn2", 77, 1024)):
            add_linear(f"{name}.{attention}.to_q", width, width, places)
            add_linear(f"{name}.{attention}.to_k", width, inputs, keys)
            add_linear(f"{name}.{attention}.to_v", width, inputs, keys)
            for product, out, summed in (("scores", keys, 64), ("values", 64, keys)):
                one = linear(f"{name}.{attention}.{product}", out, summed, places, bits)
                layers.append(replace(one, kind="attention", batch=width // 64))
            add_linear(f"{name}.{attention}.to_out", width, width, places)
        add_linear(f"{name}.ff.proj", 8 * width, width, places)
        add_linear(f"{name}.ff.out", width, 4 * width, places)
        add_linear(f"{name}.proj_out", width, width, places)

    add_conv("conv_in", 320, 9, side)
    add_linear("time_embedding.linear_1", 1280, 320)
    add_linear("time_embedding.linear_2", 1280, 1280)
    channels = 320
    for block, width in enumerate((320, 640, 1280, 1280)):
        for index in (0, 1):
            resnet(f"down{block}.resnets.{index}", channels, width, side)
            channels = width
            if block < 3:
                transformer(f"down{block}.attentions.{index}", width, side)
            skips.append(width)
        if block < 3:
            side //= 2
            add_conv(f"down{block}.downsampler", width, width, side, stride=2)
            skips.append(width)
    resnet("mid.resnets.0", 1280, 1280, side)
    transformer("mid.attentions.0", 1280, side)
    resnet("mid.resnets.1", 1280, 1280, side)
    for block, width in enumerate((1280, 1280, 640, 320)):
        for index in (0, 1, 2):
            resnet(f"up{block}.resnets.{index}", channels + skips.pop(), width, side)
            channels = width
            if block > 0:
                transformer(f"up{block}.attentions.{index}", width, side)
        if block < 3:
            side *= 2
            add_conv(f"up{block}.upsampler", width, width, side)
    add_conv("conv_out", 4, 320, side)
    return tuple(layers)


NETWORKS: dict[str, Callable[[], Network]] = {
    "alexnet": alexnet,
    "vgg16": vgg16,
    "mobilenet_v1": mobilenet_v1,
    "unet": unet,
    "resnet18": resnet18,
}
