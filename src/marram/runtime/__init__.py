"""Load and run models: bundles, engines, what goes in (images, preprocessing) and what comes out (postprocessing)."""
