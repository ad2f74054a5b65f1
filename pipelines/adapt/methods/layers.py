"""How deep each weight of a network lies, for methods that treat layers differently."""

from __future__ import annotations

from torch import nn

from monograph.pipelines.adapt.network import Network


def depths(network: Network) -> dict[str, int]:
    """Return for each weight by name how many layers lie between it and the head; the head's own have 0.

    Layers are the parts of the trunk's longest list of modules that hold weights, as transformers and staged networks have
    one; what comes before the list, such as embeddings, lies one layer deeper than its first part, and what follows as deep as
    its last. A trunk without a list counts each module of weights as a layer.
    """
    names = [name for name, _ in network.named_parameters()]
    blocks = _blocks(network)
    at = {name: index for index, block in enumerate(blocks) for name in names if name.startswith(f"{block}.")}
    depth, found = {}, -1
    for name in names:
        found = max(found, at.get(name, found))
        depth[name] = 0 if name.startswith("head.") else len(blocks) - max(at.get(name, found), -1)
    return depth


def _blocks(network: Network) -> list[str]:
    """Return the names of the layers, from the input on."""
    lists = []
    for name, module in network.trunk.named_modules(prefix="trunk"):
        if isinstance(module, nn.ModuleList | nn.Sequential):
            parts = [f"{name}.{child}" for child, part in module.named_children() if any(True for _ in part.parameters())]
            lists.append(parts)
    longest = max(lists, key=len, default=[])
    if len(longest) > 1:
        return longest
    return [
        name
        for name, module in network.trunk.named_modules(prefix="trunk")
        if any(True for _ in module.parameters(recurse=False))
    ]
