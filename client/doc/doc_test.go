package doc

import "testing"

func raw(t testing.TB, json string) Raw {
	t.Helper()
	r, err := FromJSON([]byte(json))
	if err != nil {
		t.Fatalf("FromJSON(%s): %v", json, err)
	}
	return r
}

func TestSmoke(t *testing.T) {
	r := raw(t, `{"b":1,"a":[1.0,null,{"$date":"2020-01-02T03:04:05Z"}],"c":{"$literal":{"$date":1}}}`)
	if err := Check(r, Limits{}); err != nil {
		t.Fatal(err)
	}
	t.Log(r.String())
	var d D
	if err := r.Decode(&d); err != nil {
		t.Fatal(err)
	}
	m, err := Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if !m.Equal(r) {
		t.Fatal(m.String())
	}
	k, _, err := DecodeKey(AppendKey(nil, r))
	if err != nil || Compare(k, r) != 0 {
		t.Fatal(err, k)
	}
}
