from prunella.cli import main

raise SystemExit(main())
