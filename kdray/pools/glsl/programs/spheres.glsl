// Balls of several sizes on a floor, with their shadows.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at);
    vec3 eye = vec3(0, between(0, 0.5, 2.0), -3.5), ray = normalize(vec3(p, between(1, 1.4, 2.4)));
    ray.yz = turn(0.2 * eye.y + 0.1) * ray.yz;
    vec3 light = normalize(vec3(between(2, -1.0, 1.0), 1.0, between(3, -1.0, 0.2)));
    float far = ray.y < 0.0 ? -(eye.y + 1.0) / ray.y : 1e3;
    vec3 hit = eye + ray * far, normal = vec3(0, 1, 0);
    vec2 tile = floor(hit.xz * between(4, 0.6, 2.0));
    vec3 own = far < 20.0 ? mix(ink(5), ink(6), mod(tile.x + tile.y, 2.0)) : mix(ink(7), ink(8), ray.y * 2.0);
    float shade = 1.0;
    for (int k = 0; k < 4; k++) {
        float radius = between(k + 10, 0.3, 0.9), angle = TAU * random(k + 20) + iTime * 0.5;
        vec3 centre = vec3(1.4 * cos(angle), radius - 1.0, 1.4 * sin(angle));
        vec3 to = eye - centre;
        float b = dot(to, ray), root = b * b - dot(to, to) + radius * radius;
        if (root > 0.0 && -b - sqrt(root) < far) {
            far = -b - sqrt(root);
            hit = eye + ray * far;
            normal = (hit - centre) / radius;
            own = ink(k + 30);
        }
    }
    for (int k = 0; k < 4; k++) {
        float radius = between(k + 10, 0.3, 0.9), angle = TAU * random(k + 20) + iTime * 0.5;
        vec3 to = hit + 0.01 * normal - vec3(1.4 * cos(angle), radius - 1.0, 1.4 * sin(angle));
        float b = dot(to, light);
        if (far < 20.0 && b < 0.0 && b * b - dot(to, to) + radius * radius > 0.0) shade = 0.35;
    }
    float bright = far < 20.0 ? 0.25 + 0.9 * shade * max(dot(normal, light), 0.0) : 1.0;
    colour = vec4(own * bright + 0.5 * shade * pow(max(dot(reflect(ray, normal), light), 0.0), 30.0) * step(far,
        20.0), 1);
}
