"""The one door to PEFT: makes "HADAMARD" a PEFT type and registers the method, from outside PEFT."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method

__all__ = ["NAME", "add_peft_type", "register"]

NAME = "HADAMARD"


def add_peft_type() -> None:
    """Adds the member HADAMARD to PEFT's enum of methods, which has no public way to do so; idempotent.

    Example:
        >>> add_peft_type()
        >>> PeftType("HADAMARD").name
        'HADAMARD'
    """
    if NAME in PeftType.__members__:
        return
    member = str.__new__(PeftType, NAME)
    order = len(PeftType.__members__)
    vars(member).update(_name_=NAME, _value_=NAME, __objclass__=PeftType, _sort_order_=order)
    type.__setattr__(PeftType, NAME, member)
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member


def register(config_class: type, model_class: type) -> None:
    """Registers the method with PEFT under the name "hadamard" and the prefix "hadamard_"; idempotent.

    Args:
        config_class: HadamardConfig.
        model_class: HadamardModel.

    Source: huggingface/peft src/peft/utils/peft_types.py, register_peft_method.

    Example:
        >>> from hadamard_adapter import HadamardConfig, HadamardModel
        >>> register(HadamardConfig, HadamardModel)
    """
    add_peft_type()
    if PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType(NAME)) is None:
        register_peft_method(name=NAME.lower(), config_cls=config_class, model_cls=model_class)
    PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(NAME)] = config_class
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType(NAME)] = model_class
