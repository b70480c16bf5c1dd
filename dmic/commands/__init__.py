"""The commands of `dmic`: one module each with `add_arguments(parser)` and `run(options)`, loaded when asked for."""
