package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"sort"
	"strings"

	"github.com/hashicorp/consul/api"
)

// One call as a line of JSON, with what any of them needs.
type call struct {
	Call    string
	Name    string
	ID      string
	Payload string
	Node    string
	Service string
	Tag     string
	Query   *definition
}

type definition struct {
	Name        string
	Service     string
	Session     string
	OnlyPassing bool
	Tags        []string
	NodeMeta    map[string]string
	ServiceMeta map[string]string
	Near        string
	Nearest     int
	Datacenters []string
	TTL         string
	Template    bool
}

func (wanted *definition) toAPI(id string) *api.PreparedQueryDefinition {
	query := &api.PreparedQueryDefinition{
		ID: id, Name: wanted.Name, Session: wanted.Session,
		Service: api.ServiceQuery{
			Service: wanted.Service, OnlyPassing: wanted.OnlyPassing, Tags: wanted.Tags,
			NodeMeta: wanted.NodeMeta, ServiceMeta: wanted.ServiceMeta, Near: wanted.Near,
			Failover: api.QueryFailoverOptions{
				NearestN: wanted.Nearest, Datacenters: wanted.Datacenters,
			},
		},
		DNS: api.QueryDNSOptions{TTL: wanted.TTL},
	}
	if wanted.Template {
		query.Template.Type = "name_prefix_match"
	}
	return query
}

// A client of this age always names the targets of a failover, which Consul before 1.14 does not
// know and refuses. Null says nothing, so that it is left out.
type withoutTargets struct{ http.RoundTripper }

func (t withoutTargets) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.Body != nil && strings.HasPrefix(request.URL.Path, "/v1/query") {
		body, err := io.ReadAll(request.Body)
		if err != nil {
			return nil, err
		}
		body = bytes.Replace(body, []byte(`,"Targets":null`), nil, 1)
		request = request.Clone(request.Context())
		request.Body = io.NopCloser(bytes.NewReader(body))
		request.ContentLength = int64(len(body))
	}
	return t.RoundTripper.RoundTrip(request)
}

// Makes the calls that it is told, a line each, and answers each by a line: what Consul said, or
// what was wrong.
func calls(config *api.Config) error {
	config.HttpClient = &http.Client{Transport: withoutTargets{config.Transport}}
	client, err := api.NewClient(config)
	if err != nil {
		return err
	}
	lines := json.NewDecoder(os.Stdin)
	for {
		var wanted call
		if err := lines.Decode(&wanted); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		said, wrong := answer(client, &wanted)
		told := map[string]any{"Said": said}
		if wrong != nil {
			told = map[string]any{"Wrong": wrong.Error()}
		}
		line, err := json.Marshal(told)
		if err != nil {
			return err
		}
		fmt.Println(string(line))
	}
}

func answer(client *api.Client, wanted *call) (any, error) {
	queries := client.PreparedQuery()
	switch wanted.Call {
	case "fire":
		event := &api.UserEvent{
			Name: wanted.Name, Payload: []byte(wanted.Payload), NodeFilter: wanted.Node,
			ServiceFilter: wanted.Service, TagFilter: wanted.Tag,
		}
		id, _, err := client.Event().Fire(event, nil)
		return id, err
	case "events":
		events, _, err := client.Event().List(wanted.Name, nil)
		said := []any{}
		for _, event := range events {
			said = append(said, []any{
				event.ID, event.Name, string(event.Payload), event.NodeFilter,
				event.ServiceFilter, event.TagFilter, event.LTime,
			})
		}
		return said, err
	case "create":
		id, _, err := queries.Create(wanted.Query.toAPI(""), nil)
		return id, err
	case "update":
		_, err := queries.Update(wanted.Query.toAPI(wanted.ID), nil)
		return nil, err
	case "get":
		found, _, err := queries.Get(wanted.ID, nil)
		return stored(found), err
	case "list":
		found, _, err := queries.List(nil)
		return stored(found), err
	case "execute":
		found, _, err := queries.Execute(wanted.Name, nil)
		if err != nil {
			return nil, err
		}
		nodes := []string{}
		for _, entry := range found.Nodes {
			nodes = append(nodes, entry.Service.ID)
		}
		sort.Strings(nodes)
		return []any{found.Service, found.Datacenter, found.Failovers, nodes}, nil
	case "delete":
		_, err := queries.Delete(wanted.ID, nil)
		return nil, err
	default:
		return nil, fmt.Errorf("no call %q", wanted.Call)
	}
}

func stored(found []*api.PreparedQueryDefinition) any {
	said := []any{}
	for _, query := range found {
		service := &query.Service
		tags, datacenters := service.Tags, service.Failover.Datacenters
		if tags == nil {
			tags = []string{}
		}
		if datacenters == nil {
			datacenters = []string{}
		}
		said = append(said, []any{
			query.ID, query.Name, query.Session, service.Service, service.OnlyPassing, tags,
			service.Failover.NearestN, datacenters,
		})
	}
	return said
}
