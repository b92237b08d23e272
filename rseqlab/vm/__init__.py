"""Real kernels in QEMU: find or fetch one, make a root image, boot it, collect what the guest measured."""
