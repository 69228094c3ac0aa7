"""Every failure that fewbits reports to its user.

FewbitsError                 exit status 2
├── CheckpointError          the source can't be read: missing, truncated, lying, pickled, not finite
│   └── HubError             a hub id that is neither cached nor reachable
├── FormatError              a format's name or a shape that it can't hold
├── NotFiniteError           weights that no format can hold; the tensor's name is the caller's to say
├── ArchitectureError        a model that the target container or runtime has no place for
├── CalibrationError         a text or a model that statistics can't be gathered from
├── PlanError                a plan file that doesn't fit the source
│   └── BudgetError          a size or a bit width that can't be reached
├── OutputError              the output exists, the disk is full, the folder can't be written
├── ExportError              a runtime's library can't write this model, or isn't the version that is known
├── RuntimeFailedError       a runtime can't be started, or can't run what was written
├── ResumeError              work left by an earlier run is damaged
├── VerificationError        what was written doesn't read back as what was meant
├── EngineError              a model, a token or an option that the engine can't run
├── EvaluationError          models or texts that can't be compared
├── ServingError             the server can't listen, or takes no more work for now
│   └── RequestError         a request to the server that it refuses
└── MissingExtraError        an optional package that this command needs isn't installed
"""

from __future__ import annotations


class FewbitsError(Exception):
    """A failure with its cause and its cure, shown to the user without a traceback.

    The message reads ``what: found F; allowed: A. action``.
    """

    exit_status = 2

    def __init__(self, what: str, *, found: object = None, allowed: object = None, action: str = "") -> None:
        self.what = what
        self.found = found
        self.allowed = allowed
        self.action = action
        facts = [f"found {found}"] if found is not None else []
        facts += [f"allowed: {allowed}"] if allowed is not None else []
        message = what + (": " + "; ".join(facts) if facts else "")
        super().__init__(f"{message}. {action}" if action else message)


class CheckpointError(FewbitsError):
    """The source can't be read."""


class HubError(CheckpointError):
    """A hub id is neither in the local cache nor reachable."""


class FormatError(FewbitsError):
    """No such format, or a shape that the format can't hold."""


class NotFiniteError(FewbitsError):
    """NaN or infinity among the weights that a format was given."""

    def __init__(self, name: str) -> None:
        super().__init__(
            "some of the weights aren't finite",
            found="NaN or infinity",
            allowed=f"finite numbers for {name}",
        )


class ArchitectureError(FewbitsError):
    """The target container or runtime has no place for this model."""


class CalibrationError(FewbitsError):
    """Statistics can't be gathered from this text or model."""


class PlanError(FewbitsError):
    """The plan doesn't fit the source or the target."""


class BudgetError(PlanError):
    """No plan reaches the asked size or bit width."""


class OutputError(FewbitsError):
    """The output can't be written where it was asked for."""


class ExportError(FewbitsError):
    """A runtime's library couldn't write the model."""


class RuntimeFailedError(FewbitsError):
    """A runtime can't be started, or can't run what was written."""


class ResumeError(FewbitsError):
    """The state of an interrupted run is damaged or belongs to another run."""


class VerificationError(FewbitsError):
    """What was written doesn't read back as what was meant."""


class EngineError(FewbitsError):
    """The native engine can't run this model or these tokens."""


class EvaluationError(FewbitsError):
    """The models or the text can't be compared."""


class ServingError(FewbitsError):
    """The server can't be started, or can't take what it was sent."""


class RequestError(ServingError):
    """A request that the server refuses, with what OpenAI's clients are told of it.

    Attributes:
        status: of HTTP.
        kind: ``error.type`` of the answer.
        code: ``error.code``, or None.
        param: ``error.param``, the part of the request that is wrong, or None.
    """

    def __init__(
        self,
        what: str,
        *,
        found: object = None,
        allowed: object = None,
        action: str = "",
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(what, found=found, allowed=allowed, action=action)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param


class MissingExtraError(FewbitsError):
    """An optional package isn't installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which isn't installed",
            action=f"Run: pip install 'fewbits[{extra}]'",
        )
