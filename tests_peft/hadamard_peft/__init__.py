"""What aims PEFT's own tests at HadamardConfig: the cases, the tiny local models and a pytest plugin.

`scripts/peft_tests.py` puts this package on the path and loads `hadamard_peft.plugin` into pytest.
"""
