from skyrack.sandbox.cli import sandbox

sandbox(prog_name="skyrack sandbox")
