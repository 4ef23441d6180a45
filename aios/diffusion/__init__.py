"""The mathematics of diffusion: schedules, processes and samplers; they know denoisers, never networks."""
