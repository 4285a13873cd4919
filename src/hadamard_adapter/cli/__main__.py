"""`python -m hadamard_adapter.cli`, and `accelerate launch -m hadamard_adapter.cli` for several processes."""

from hadamard_adapter.cli.main import main

if __name__ == "__main__":
    main()
