"""Model and app versions in the cloud: content-addressed bundles, channels."""
