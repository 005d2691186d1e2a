"""Where trials run: the seams (`Runner`, `Executor`), this process (`local`), Ray Tune (`ray_tune`)."""
