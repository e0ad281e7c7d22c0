"""What makes the machine obey: libvirt and files in production, the fake in simulations and trials."""
