"""The commands of `dmic`: one module each with `add_arguments(parser)` and `run(options)`, loaded when asked for."""

NOT_HEALTHY = 1  # exit status: the command ran and found something wrong
