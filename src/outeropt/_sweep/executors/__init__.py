"""Where the chunks of a sweep run: in this process, on a Ray cluster, or as jobs of a batch system."""
