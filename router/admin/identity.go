package admin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// Spec is what a cluster is formed with.
type Spec struct {
	Shards     uint32 `json:"shards"`
	Replicas   uint32 `json:"replicas"`
	Partitions uint32 `json:"partitions"`
	// Leaders is by its word, and left out when they are spread: such an
	// identity is of format 1.
	Leaders wire.Leaders `json:"leaders,omitempty"`
}

// Member is a node as it was when the cluster was formed.
type Member struct {
	ID          placement.NodeID `json:"id"`
	Incarnation string           `json:"incarnation"`
	PeerAddr    string           `json:"peer_addr"`
	ClientAddr  string           `json:"client_addr"`
}

// Identity is what a node knows of its cluster for ever: whose it is, and with
// whom it was formed. It is kept in the data directory, so that a node can
// start its part of the placement group before it has spoken to anybody.
type Identity struct {
	Format    int      `json:"format"`
	ClusterID string   `json:"cluster"`
	Members   []Member `json:"members"` // by ID
	Spec      Spec     `json:"spec"`
}

const (
	identityFormat = 2 // the newest that is read
	// plainFormat is of clusters whose leaders were spread when they were formed.
	plainFormat = 1
	// maxIdentityBytes bounds what is decoded: 256 members of generous size.
	maxIdentityBytes = 1 << 20
)

// Voters are the members of the placement group. Every node computes the same
// from the same identity, so all bootstrap with one configuration.
func (id *Identity) Voters() []placement.NodeID {
	nodes := make([]placement.Node, len(id.Members))
	for i, m := range id.Members {
		nodes[i].ID = m.ID
	}
	return placement.PlanMembers(nodes)
}

// Member is the member of that ID.
func (id *Identity) Member(n placement.NodeID) (Member, bool) {
	i := slices.IndexFunc(id.Members, func(m Member) bool { return m.ID == n })
	if i < 0 {
		return Member{}, false
	}
	return id.Members[i], true
}

// Encode is the identity's bytes, on the wire and on disk:
//
//	{"format":1,"cluster":"…","members":[{"id":"n1",…},…],"spec":{…}}
func (id *Identity) Encode() []byte {
	out := *id
	out.Format = out.Spec.format()
	b, err := json.Marshal(&out)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return b
}

// format is the oldest that can say it.
func (s Spec) format() int {
	if s.Leaders == wire.LeadersSpread {
		return plainFormat
	}
	return identityFormat
}

// DecodeIdentity reads them and refuses what is no whole identity.
func DecodeIdentity(b []byte) (*Identity, error) {
	if len(b) > maxIdentityBytes {
		return nil, fmt.Errorf("cluster identity of %d bytes, at most %d are read", len(b), maxIdentityBytes)
	}
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, fmt.Errorf("cluster identity is damaged: %w", err)
	}
	if head.Format > identityFormat {
		return nil, fmt.Errorf("cluster identity has format %d, this version reads up to %d (upgrade this node)", head.Format, identityFormat)
	}
	id := new(Identity)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(id); err != nil {
		return nil, fmt.Errorf("cluster identity is damaged: %w", err)
	}
	return id, id.check()
}

func (id *Identity) check() error {
	if id.Format != id.Spec.format() || id.ClusterID == "" || len(id.ClusterID) > 128 {
		return fmt.Errorf("cluster identity is damaged: format %d, cluster %q", id.Format, id.ClusterID)
	}
	for i, m := range id.Members {
		if m.ID == "" || m.Incarnation == "" || m.PeerAddr == "" {
			return fmt.Errorf("cluster identity is damaged: member %d is incomplete", i+1)
		}
		if i > 0 && id.Members[i-1].ID >= m.ID {
			return fmt.Errorf("cluster identity is damaged: member %s is out of order", m.ID)
		}
	}
	return placement.CheckSpec(len(id.Members), int(id.Spec.Shards), int(id.Spec.Replicas), int(id.Spec.Partitions))
}

// same says that two identities are of one formation.
func (id *Identity) same(other *Identity) bool {
	return id.ClusterID == other.ClusterID && id.Spec == other.Spec && slices.Equal(id.Members, other.Members)
}

// describe words the formation, for refusals.
func (id *Identity) describe() string {
	names := make([]string, len(id.Members))
	for i, m := range id.Members {
		names[i] = string(m.ID)
	}
	text := fmt.Sprintf("nodes %s, %d shard groups, %d replicas, %d partitions",
		strings.Join(names, " "), id.Spec.Shards, id.Spec.Replicas, id.Spec.Partitions)
	if id.Spec.Leaders != wire.LeadersSpread {
		text += ", leaders " + id.Spec.Leaders.String()
	}
	return text
}

func refuse(code wire.Code, format string, args ...any) *wire.Error {
	return &wire.Error{Code: code, Message: fmt.Sprintf(format, args...)}
}
