"""The server's paths. Every file of this folder has a `router`, which `app` adds."""
