package chaos

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Ports come from below the range that the kernel takes for outgoing
// connections: a node that is down for a while finds its own still free.
const (
	lowestPort  = 20000
	highestPort = 32000
)

var ports = struct {
	sync.Mutex
	next int // guarded by the mutex; a random start keeps test processes apart
}{next: lowestPort + rand.IntN(highestPort-lowestPort)}

// freeAddr is a loopback address that nobody listens on and that this process
// gives out once.
func freeAddr() (string, error) {
	ports.Lock()
	defer ports.Unlock()
	for range highestPort - lowestPort {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(ports.next))
		if ports.next++; ports.next == highestPort {
			ports.next = lowestPort
		}
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr, nil
		}
	}
	return "", fmt.Errorf("no free port on 127.0.0.1 between %d and %d", lowestPort, highestPort)
}
