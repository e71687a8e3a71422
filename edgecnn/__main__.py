"""`python -m edgecnn`."""

from edgecnn.process.start import leave_out_working_directory

leave_out_working_directory()

from edgecnn.cli import main  # noqa: E402

main()
