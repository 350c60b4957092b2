"""The command `jaxadv`, and the job that run.py starts."""
