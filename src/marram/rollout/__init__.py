"""Which version runs where: desired state from deployments and labels."""
