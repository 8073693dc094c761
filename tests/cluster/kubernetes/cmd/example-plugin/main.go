// example-plugin is the least that a device plugin can be. It proves that the device manager, alone or in a cluster, does
// what is asked of it.
//
// A container gets the IDs of its devices in the variable EXAMPLE_DEVICES. Lines of standard input change the devices'
// health: "unhealthy ID" and "healthy ID".
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// usageError is the exit code for bad usage, EX_USAGE of sysexits.h.
const usageError = 64

// glance is the time between two looks for a kubelet that has come back, which removes all sockets.
const glance = 50 * time.Millisecond

func main() {
	folder := flag.String("plugin-dir", "/var/lib/kubelet/device-plugins", "folder of the kubelet's socket")
	resource := flag.String("resource", "example.com/device", "name of the resource")
	ids := flag.String("devices", "", "IDs of the devices, separated by commas")
	flag.Parse()
	if *ids == "" {
		exit(usageError, fmt.Errorf("devices %q: allowed are IDs separated by commas", *ids))
	}
	plugin := newPlugin(strings.Split(*ids, ","))
	go plugin.listen()
	socket := filepath.Join(*folder, strings.ReplaceAll(*resource, "/", "-")+".sock")
	for {
		if err := plugin.serve(socket, filepath.Join(*folder, "kubelet.sock"), *resource); err != nil {
			fmt.Fprintf(os.Stderr, "example-plugin: %v\n", err)
		}
		time.Sleep(glance)
	}
}

func exit(code int, err error) {
	fmt.Fprintf(os.Stderr, "example-plugin: %v\n", err)
	os.Exit(code)
}

type plugin struct {
	pluginapi.UnimplementedDevicePluginServer
	ids []string

	mutex   sync.Mutex
	sick    map[string]bool
	changed chan struct{} // Closed at the next change.
}

func newPlugin(ids []string) *plugin {
	return &plugin{ids: ids, sick: map[string]bool{}, changed: make(chan struct{})}
}

// listen reads changes of health until the input ends; then the plugin ends too.
func (p *plugin) listen() {
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		word, id, _ := strings.Cut(input.Text(), " ")
		if word != "healthy" && word != "unhealthy" {
			exit(usageError, fmt.Errorf("line %q: allowed are healthy ID and unhealthy ID", input.Text()))
		}
		p.mutex.Lock()
		p.sick[id] = word == "unhealthy"
		close(p.changed)
		p.changed = make(chan struct{})
		p.mutex.Unlock()
	}
	os.Exit(0)
}

// serve registers, and returns when the socket is gone.
func (p *plugin) serve(socket, kubelet, resource string) error {
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	defer server.Stop()
	pluginapi.RegisterDevicePluginServer(server, p)
	go func() { _ = server.Serve(listener) }()
	if err := register(kubelet, filepath.Base(socket), resource); err != nil {
		return err
	}
	fmt.Println("registered")
	for {
		if _, err := os.Stat(socket); err != nil {
			return nil
		}
		time.Sleep(glance)
	}
}

func register(kubelet, endpoint, resource string) error {
	connection, err := grpc.NewClient("unix://"+kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	request := &pluginapi.RegisterRequest{Version: pluginapi.Version, Endpoint: endpoint, ResourceName: resource}
	_, err = pluginapi.NewRegistrationClient(connection).Register(ctx, request)
	return err
}

// GetDevicePluginOptions is asked while the plugin registers.
func (p *plugin) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return &pluginapi.DevicePluginOptions{PreStartRequired: true, GetPreferredAllocationAvailable: true}, nil
}

// ListAndWatch sends all devices, and again after each change.
func (p *plugin) ListAndWatch(_ *pluginapi.Empty, stream grpc.ServerStreamingServer[pluginapi.ListAndWatchResponse]) error {
	for {
		devices, changed := p.devices()
		if err := stream.Send(&pluginapi.ListAndWatchResponse{Devices: devices}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

func (p *plugin) devices() ([]*pluginapi.Device, <-chan struct{}) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	var devices []*pluginapi.Device
	for _, id := range p.ids {
		health := pluginapi.Healthy
		if p.sick[id] {
			health = pluginapi.Unhealthy
		}
		devices = append(devices, &pluginapi.Device{ID: id, Health: health})
	}
	return devices, p.changed
}

// GetPreferredAllocation prefers the devices that come last, which a kubelet by itself doesn't.
func (p *plugin) GetPreferredAllocation(_ context.Context, request *pluginapi.PreferredAllocationRequest) (*pluginapi.PreferredAllocationResponse, error) {
	response := &pluginapi.PreferredAllocationResponse{}
	for _, container := range request.ContainerRequests {
		available := map[string]bool{}
		for _, id := range container.AvailableDeviceIDs {
			available[id] = true
		}
		preferred := &pluginapi.ContainerPreferredAllocationResponse{}
		for at := len(p.ids) - 1; at >= 0 && len(preferred.DeviceIDs) < int(container.AllocationSize); at-- {
			if available[p.ids[at]] {
				preferred.DeviceIDs = append(preferred.DeviceIDs, p.ids[at])
			}
		}
		response.ContainerResponses = append(response.ContainerResponses, preferred)
	}
	return response, nil
}

// Allocate tells the container which devices are its own.
func (p *plugin) Allocate(_ context.Context, request *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	response := &pluginapi.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		variables := map[string]string{"EXAMPLE_DEVICES": strings.Join(container.DevicesIds, ",")}
		response.ContainerResponses = append(response.ContainerResponses, &pluginapi.ContainerAllocateResponse{Envs: variables})
	}
	return response, nil
}

// PreStartContainer says on standard output which container starts.
func (p *plugin) PreStartContainer(_ context.Context, request *pluginapi.PreStartContainerRequest) (*pluginapi.PreStartContainerResponse, error) {
	fmt.Println("starts", strings.Join(request.DevicesIds, ","))
	return &pluginapi.PreStartContainerResponse{}, nil
}
