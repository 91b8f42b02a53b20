"""torch_foo in other libraries' models; nothing here is imported by itself."""
