"""The rules of ``build --check``: BuildKit's linter's, by their names, in one table.

Source: Docker's "Build checks" reference. Not among them: ``InvalidBaseImagePlatform``, since a
base image of another platform is an error here.
"""

from __future__ import annotations

from dataclasses import dataclass

_PLACE = "https://docs.docker.com/go/dockerfile/rule/"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule."""

    name: str
    about: str
    experimental: bool = False

    @property
    def url(self) -> str:
        """Where it is explained."""
        words = "".join(
            f"-{letter.lower()}" if letter.isupper() else letter
            for letter in self.name.replace("JSON", "Json")
        )
        return f"{_PLACE}{words.lstrip('-')}/"


RULES = {
    rule.name: rule
    for rule in (
        Rule("StageNameCasing", "Stage names should be lowercase"),
        Rule("FromAsCasing", "'as' is written in the case of 'from'"),
        Rule("NoEmptyContinuation", "Empty lines inside an instruction will become errors"),
        Rule("ConsistentInstructionCasing", "All instructions are written in the same case"),
        Rule("DuplicateStageName", "Stage names are unique"),
        Rule("ReservedStageName", "Reserved words are no stage names"),
        Rule("JSONArgsRecommended", "CMD and ENTRYPOINT in JSON form get signals themselves"),
        Rule("MaintainerDeprecated", "MAINTAINER is deprecated: use a label"),
        Rule("UndefinedArgInFrom", "FROM uses declared ARGs only"),
        Rule("WorkdirRelativePath", "A relative WORKDIR depends on the base image"),
        Rule("UndefinedVar", "Variables are defined before they are used"),
        Rule("MultipleInstructionsDisallowed", "Of several only the last one counts"),
        Rule("LegacyKeyValueFormat", "name=value instead of name value"),
        Rule("RedundantTargetPlatform", "$TARGETPLATFORM is what FROM takes by itself"),
        Rule("SecretsUsedInArgOrEnv", "ARG and ENV are no place for secrets"),
        Rule("InvalidDefaultArgInFrom", "The defaults of ARGs make an image name"),
        Rule("FromPlatformFlagConstDisallowed", "FROM --platform is no constant"),
        Rule("CopyIgnoredFile", "What .dockerignore keeps out can't be copied"),
        Rule("InvalidDefinitionDescription", "A comment on an ARG or a stage names it", True),
        Rule("ExposeProtoCasing", "Protocols of EXPOSE are lowercase"),
        Rule("ExposeInvalidFormat", "EXPOSE has no addresses and no host ports"),
    )
}
