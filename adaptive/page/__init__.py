"""The live page: what an agent does, shown to a browser while it runs."""
