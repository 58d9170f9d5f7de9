# The root entry; the workflow itself is workflow/Snakefile (docs/adr/0001-layout.md).
include: "workflow/Snakefile"


workflow.default_target = "all"  # an include alone leaves no default target
