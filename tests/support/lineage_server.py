"""A W&B server on the loopback that knows versions of artifacts: equal content, aliases, uses, and links."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tests.support.wandb_queries import PAGE
from tests.support.wandb_server import PROJECT, Server, StoredArtifact

TIME = "2026-01-01T00:00:00Z"


@dataclass
class Version(StoredArtifact):
    """A version of an artifact.

    Attributes:
        number: in its collection, from 0.
        ttl: seconds; None where the client gave none.
        used_by: ids of the runs that use it.
        links: registry collections that it is linked to.
    """

    number: int = 0
    ttl: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    used_by: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    @property
    def manifest(self) -> dict[str, Any]:
        """Name inside the artifact -> entry."""
        return json.loads(self.files["manifest"])["contents"]


class LineageServer(Server):
    """A server with versions; like W&B's it takes equal content in a collection for the same version.

    Attributes:
        keeps_aliases: whether content that it has already keeps the aliases that it had.
    """

    artifacts: dict[str, Version]
    keeps_aliases = False

    def versions(self, collection: str) -> list[Version]:
        """Return the versions of a collection, oldest first."""
        return [version for version in self.artifacts.values() if version.name == collection]

    def version(self, path: str) -> Version | None:
        """Return the version COLLECTION:ALIAS."""
        name, _, alias = path.partition(":")
        for version in self.versions(name):
            if version.committed and alias in (*version.aliases, f"v{version.number}"):
                return version
        return None

    def uploaded_bytes(self) -> int:
        """Return the bytes of all files of artifacts."""
        return sum(len(content) for version in self.artifacts.values() for content in version.files.values())

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "CreateArtifact":
                return self._create(variables["input"])
            case "UseArtifact":
                about = variables.get("input", variables)
                self.artifacts[about["artifactID"]].used_by.append(about["runName"])
                return {"useArtifact": {"artifact": {"id": about["artifactID"]}}}
            case "ArtifactByID":
                return {"artifact": self._fragment(variables["id"])}
            case "ArtifactMembershipByName":
                version = self.version(variables["name"])
                return {"project": {"artifactCollectionMembership": version and self._membership(version)}}
            case "FetchArtifactManifest":
                file = {"directUrl": f"{self.url}/artifact/{variables['id']}/manifest"}
                return {"artifact": {"currentManifest": {"file": file}}}
            case "GetArtifactMembershipFileUrls":
                version = self.version(f"{variables['collection']}:{variables['alias']}")
                collection = version and {"__typename": "ArtifactSequence", "artifactMembership": self._files(version)}
                return {"project": {"artifactCollection": collection}}
            case "FetchOrgInfoFromEntity":
                return {"entity": {"organization": {"name": "org", "orgEntity": {"name": "org"}}, "user": None}}
            case "AddAliases":
                about = variables["input"]
                for alias in about["aliases"]:
                    self._take_alias(alias["artifactCollectionName"], alias["alias"])
                    self.artifacts[about["artifactID"]].aliases.append(alias["alias"])
                return {"addAliases": {"success": True}}
            case "UpdateArtifact":
                about = variables["input"]
                version = self.artifacts[about["artifactID"]]
                version.metadata = json.loads(about.get("metadata") or "null") or version.metadata
                ttl = about.get("ttlDurationSeconds")
                version.ttl = version.ttl if ttl is None else ttl if ttl > 0 else None
                return {"result": {"artifact": self._fragment(about["artifactID"])}}
            case "LinkArtifact":
                about = variables["input"]
                version = self.artifacts[about["artifactID"]]
                version.links.append(f"{about['projectName']}/{about['artifactPortfolioName']}")
                return {"result": {"versionIndex": 0, "artifactMembership": self._membership(version)}}
        return super().answer(operation, variables)

    def _create(self, about: dict[str, Any]) -> dict[str, Any]:
        name, digest = about["artifactCollectionName"], about["digest"]
        aliases = [alias["alias"] for alias in about.get("aliases") or []]
        same = [
            key for key, one in self.artifacts.items() if (one.name, one.digest) == (name, digest) and one.committed
        ]
        key = same[0] if same else f"a{len(self.artifacts)}"
        if same and self.keeps_aliases:
            aliases = []
        for alias in aliases:
            self._take_alias(name, alias)
        if same:
            self.artifacts[key].aliases += aliases
        else:
            self.artifacts[key] = Version(
                name, about["artifactTypeName"], about["runName"], aliases,
                digest=digest, client_id=about.get("clientID") or "",
                sequence_client_id=about.get("sequenceClientID") or "", number=len(self.versions(name)), ttl=about.get("ttlDurationSeconds"),
                metadata=json.loads(about.get("metadata") or "{}"),
            )  # fmt: skip
        sequence = {"id": f"s{name}", "latestArtifact": None}
        state = "COMMITTED" if same else "PENDING"
        return {"createArtifact": {"artifact": {"id": key, "state": state, "artifactSequence": sequence}}}

    def _take_alias(self, collection: str, alias: str) -> None:
        for version in self.versions(collection):
            version.aliases = [other for other in version.aliases if other != alias]

    def _membership(self, version: Version) -> dict[str, Any]:
        (key,) = [key for key, one in self.artifacts.items() if one is version]
        return {
            "__typename": "ArtifactCollectionMembership", "id": f"m{key}", "versionIndex": version.number,
            "createdAt": TIME, "aliases": self._aliases(version), "artifactCollection": self._collection(version),
            "artifact": self._fragment(key),
        }  # fmt: skip

    def _files(self, version: Version) -> dict[str, Any]:
        """The files of a version, with the addresses to download them from."""
        (key,) = [key for key, one in self.artifacts.items() if one is version]
        names = [name for name in version.files if name != "manifest"]
        urls = {name: f"{self.url}/artifact/{key}/{quote(name, safe='')}" for name in names}
        edges = [{"node": {"__typename": "File", "name": name, "directUrl": url}} for name, url in urls.items()]
        return {"files": {"edges": edges, "pageInfo": PAGE}}

    def _fragment(self, key: str) -> dict[str, Any]:
        version = self.artifacts[key]
        sequence = {**self._collection(version), "__typename": "ArtifactSequence"}
        return {
            "__typename": "Artifact", "id": key, "artifactSequence": sequence, "versionIndex": version.number,
            "artifactType": {"name": version.kind}, "description": None, "metadata": json.dumps(version.metadata),
            "ttlDurationSeconds": version.ttl or -2, "ttlIsInherited": version.ttl is None, "tags": [],
            "historyStep": None, "state": "COMMITTED" if version.committed else "PENDING", "size": 1,
            "digest": version.digest, "commitHash": None, "fileCount": len(version.files), "createdAt": TIME,
            "updatedAt": TIME,
            "aliases": [{**alias, "artifactCollection": self._collection(version)} for alias in self._aliases(version)],
        }  # fmt: skip

    def _aliases(self, version: Version) -> list[dict[str, Any]]:
        return [{"__typename": "ArtifactAlias", "id": f"{version.name}{a}", "alias": a} for a in version.aliases]

    def _collection(self, version: Version) -> dict[str, Any]:
        project = {**PROJECT, "internalId": "1"}
        return {"__typename": "ArtifactSequence", "name": version.name, "project": project}
