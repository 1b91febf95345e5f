"""Names that containers get when nobody names them: an adjective and something from a kitchen."""

from __future__ import annotations

import re
import secrets

from tiffin.errors import InvalidParameter

_ADJECTIVES = (
    "amber bold brisk calm clever cosy crisp curious deft eager early fond fresh gentle glad "
    "golden hearty humble jolly keen kind lively lucid mellow merry mild modest neat nimble "
    "patient plain proud quick quiet ready ripe round savoury serene sharp silver simple smart "
    "smooth spicy steady sunny sweet swift tender tidy upbeat vivid warm wise witty zesty"
).split()
_NOUNS = (
    "almond apple apricot barley basil bean beet bread cardamom carrot cashew celery cherry "
    "chilli cinnamon clove coconut coriander cumin curry date dill fennel fig garlic ginger "
    "grape hazel honey idli kale leek lemon lentil lime mango maple melon millet mint mustard "
    "nutmeg oat olive onion orange paneer papaya peach pear pepper plum poppy quince radish "
    "raisin rice roti saffron sage samosa sesame sorrel spelt squash sumac tamarind thyme "
    "tomato turmeric vanilla walnut yam"
).split()

_VALID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


def random_name() -> str:
    """A name such as ``brisk_cardamom``; the caller makes sure that it is free."""
    return f"{secrets.choice(_ADJECTIVES)}_{secrets.choice(_NOUNS)}"


def check_volume_name(name: str) -> str:
    """The name; raises InvalidParameter, in Docker's words, for what can't be a volume's."""
    if len(name) < 2:
        raise InvalidParameter(
            f"create {name}: volume name is too short, names should be at least two alphanumeric "
            "characters"
        )
    if not _VALID.fullmatch(name):
        raise InvalidParameter(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, '
            "use absolute path"
        )
    return name


def numbered_name() -> str:
    """A name such as ``brisk_cardamom417``, for when plain ones are taken."""
    return f"{random_name()}{secrets.randbelow(10_000)}"


def check_name(name: str, what: str = "container") -> str:
    """The name without a leading slash; raises InvalidParameter in Docker's words."""
    bare = name.removeprefix("/")
    if not _VALID.fullmatch(bare):
        raise InvalidParameter(
            f"Invalid {what} name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )
    return bare
