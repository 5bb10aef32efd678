package wire

import "github.com/vmihailenco/msgpack/v5"

// The four methods of every message that lists its fields.

// AppendTo appends the encoding.
func (m *Hello) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *Hello) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *Hello) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *Hello) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *HelloReply) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *HelloReply) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *HelloReply) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *HelloReply) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *CollectionOptions) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *CollectionOptions) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *CollectionOptions) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *CollectionOptions) DecodeMsgpack(dec *msgpack.Decoder) error {
	return decodeDescribedFrom(dec, m)
}

// AppendTo appends the encoding.
func (m *CollectionInfo) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *CollectionInfo) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *CollectionInfo) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *CollectionInfo) DecodeMsgpack(dec *msgpack.Decoder) error {
	return decodeDescribedFrom(dec, m)
}

// AppendTo appends the encoding.
func (m *CreateCollectionRequest) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *CreateCollectionRequest) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *CreateCollectionRequest) EncodeMsgpack(enc *msgpack.Encoder) error {
	return encodeDescribed(enc, m)
}

// DecodeMsgpack reads the encoding from dec.
func (m *CreateCollectionRequest) DecodeMsgpack(dec *msgpack.Decoder) error {
	return decodeDescribedFrom(dec, m)
}

// AppendTo appends the encoding.
func (m *DropCollectionRequest) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *DropCollectionRequest) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *DropCollectionRequest) EncodeMsgpack(enc *msgpack.Encoder) error {
	return encodeDescribed(enc, m)
}

// DecodeMsgpack reads the encoding from dec.
func (m *DropCollectionRequest) DecodeMsgpack(dec *msgpack.Decoder) error {
	return decodeDescribedFrom(dec, m)
}

// AppendTo appends the encoding.
func (m *Settings) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *Settings) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *Settings) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *Settings) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *TopologyRequest) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *TopologyRequest) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *TopologyRequest) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *TopologyRequest) DecodeMsgpack(dec *msgpack.Decoder) error {
	return decodeDescribedFrom(dec, m)
}

// AppendTo appends the encoding.
func (m *Topology) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *Topology) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *Topology) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *Topology) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *GroupInfo) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *GroupInfo) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *GroupInfo) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *GroupInfo) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *NodeInfo) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *NodeInfo) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *NodeInfo) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *NodeInfo) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *ClusterInitRequest) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *ClusterInitRequest) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *ClusterInitRequest) EncodeMsgpack(enc *msgpack.Encoder) error {
	return encodeDescribed(enc, m)
}

// DecodeMsgpack reads the encoding from dec.
func (m *ClusterInitRequest) DecodeMsgpack(dec *msgpack.Decoder) error {
	return decodeDescribedFrom(dec, m)
}

// AppendTo appends the encoding.
func (m *ClusterInitReply) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *ClusterInitReply) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *ClusterInitReply) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *ClusterInitReply) DecodeMsgpack(dec *msgpack.Decoder) error {
	return decodeDescribedFrom(dec, m)
}

// AppendTo appends the encoding.
func (m *NodeStatus) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *NodeStatus) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *NodeStatus) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *NodeStatus) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *GroupStatus) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *GroupStatus) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *GroupStatus) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *GroupStatus) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *ClusterStatus) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *ClusterStatus) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *ClusterStatus) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *ClusterStatus) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *NodeAnswer) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *NodeAnswer) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *NodeAnswer) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *NodeAnswer) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *CheckRequest) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *CheckRequest) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *CheckRequest) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *CheckRequest) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *CheckReply) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *CheckReply) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *CheckReply) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *CheckReply) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *CheckReplica) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *CheckReplica) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *CheckReplica) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *CheckReplica) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *CheckFinding) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *CheckFinding) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *CheckFinding) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *CheckFinding) DecodeMsgpack(dec *msgpack.Decoder) error { return decodeDescribedFrom(dec, m) }

// AppendTo appends the encoding.
func (m *CollectionRequest) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *CollectionRequest) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *CollectionRequest) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *CollectionRequest) DecodeMsgpack(dec *msgpack.Decoder) error {
	return decodeDescribedFrom(dec, m)
}

// AppendTo appends the encoding.
func (m *SettingsRequest) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *SettingsRequest) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *SettingsRequest) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *SettingsRequest) DecodeMsgpack(dec *msgpack.Decoder) error {
	return decodeDescribedFrom(dec, m)
}

// AppendTo appends the encoding.
func (m *LeadersRequest) AppendTo(dst []byte) []byte { return appendDescribed(dst, m) }

func (m *LeadersRequest) decodeFrom(body []byte) error { return decodeDescribed(body, m) }

// EncodeMsgpack writes the encoding to enc.
func (m *LeadersRequest) EncodeMsgpack(enc *msgpack.Encoder) error { return encodeDescribed(enc, m) }

// DecodeMsgpack reads the encoding from dec.
func (m *LeadersRequest) DecodeMsgpack(dec *msgpack.Decoder) error {
	return decodeDescribedFrom(dec, m)
}
