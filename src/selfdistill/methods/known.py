"""Names in the configuration, and where the classes stand: the one place that knows them all.

Only those of a row are imported, and belong to its code.
"""

METHODS = {
    "diffusion": ("selfdistill.methods.diffusion", "Diffusion"),
    "dsd": ("selfdistill.methods.dsd", "DSD"),
    "progressive": ("selfdistill.methods.progressive", "Progressive"),
    "sid": ("selfdistill.methods.sid", "SiD"),
    "ssd": ("selfdistill.methods.ssd", "SSD"),
}
# A method's class around a network that it has to adapt first.
ADAPTING = {
    ("sid", "dit"): ("selfdistill.methods.sid_adapted", "AdaptedSiD"),
    ("sid", "dsd_vit"): ("selfdistill.methods.sid_dsd", "DSDSiD"),
    ("sid", "sit"): ("selfdistill.methods.sid_adapted", "AdaptedSiD"),
}
NETWORKS = {
    "adm": ("selfdistill.networks.edm", "EDM"),
    "ddpmpp": ("selfdistill.networks.edm", "EDM"),
    "dit": ("selfdistill.networks.dit", "DiT"),
    "dsd_vit": ("selfdistill.networks.dsd_vit", "DSDViT"),
    "edm2": ("selfdistill.networks.edm2", "EDM2"),
    "sit": ("selfdistill.networks.sit", "SiT"),
    "text_unet": ("selfdistill.networks.text_unet", "TextUNet"),
}
