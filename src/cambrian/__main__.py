"""`python -m cambrian` is the `cambrian` command."""

from cambrian.cli.main import main

raise SystemExit(main())
