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
NETWORKS = {
    "adm": ("selfdistill.networks.edm", "EDM"),
    "ddpmpp": ("selfdistill.networks.edm", "EDM"),
    "dit": ("selfdistill.networks.dit", "DiT"),
    "dsd_vit": ("selfdistill.networks.dsd_vit", "DSDViT"),
    "edm2": ("selfdistill.networks.edm2", "EDM2"),
    "sit": ("selfdistill.networks.sit", "SiT"),
    "text_unet": ("selfdistill.networks.text_unet", "TextUNet"),
}
