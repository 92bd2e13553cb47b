"""Names what a layer reacts to, by a rule of thumb, from how deep it lies in its network.

>>> stages_of(["conv1", "layer1", "layer2", "layer3", "layer4"])
('colour and edges', 'colour and edges', 'texture', 'shape', 'objects')
"""

from __future__ import annotations

from collections.abc import Sequence

STAGES = ("colour and edges", "texture", "shape", "objects")
"""What the quarters of a network react to, the first layers first.

Zeiler and Fergus (2014, "Visualizing and understanding convolutional networks") and Olah et al.
(2017, "Feature visualization") found this order in networks that were trained on ImageNet.
"""


def stages_of(layers: Sequence[str]) -> tuple[str, ...]:
    """Names the stage of each layer by its place among the layers that are observed.

    This is a rule of thumb and no finding: nobody looked at what these neurons react to. The layers
    must be spread over the whole network, as they are by default.

    Args:
        layers: The layers, from the input to the output.

    Returns:
        One of `STAGES` for each layer; empty texts if there are fewer layers than stages.
    """
    if len(layers) < len(STAGES):
        return ("",) * len(layers)
    return tuple(STAGES[len(STAGES) * at // len(layers)] for at in range(len(layers)))
