"""The network: layers in the order of the paper, the RMT backbone, registry, necks, cost."""
