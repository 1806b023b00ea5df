"""From a bundle to a device and back: an archive that installs without a network, over ssh, and what a device says of itself."""
